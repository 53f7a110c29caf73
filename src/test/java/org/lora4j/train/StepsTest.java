package org.lora4j.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalStateException;
import static org.assertj.core.api.Assertions.within;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.AdamWOptions;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.config.LoraConfig;
import org.lora4j.layer.FusedMode;
import org.lora4j.model.Lora;
import org.lora4j.model.LoraModel;
import org.lora4j.model.causal.CausalLM;

/** What a step is made of: loss, packing, accumulation, optimizer; and when a run stops. */
class StepsTest {
    @TempDir
    Path folder;

    /** A model without dropout, whose head is adapted or not. */
    private static LoraModel<CausalLM> model(boolean head) throws IOException {
        CausalLM base = CausalLM.load(TinyTask.MODEL);
        torch.manual_seed(3);
        List<String> targets = new ArrayList<>(List.of("q_proj", "v_proj", "down_proj"));
        if (head) {
            targets.add("lm_head");
        }
        LoraConfig config = LoraConfig.builder()
                .r(4)
                .loraAlpha(12)
                .targetModules(targets.toArray(new String[0]))
                .build();
        LoraModel<CausalLM> model = Lora.wrap(base, config, TinyTask.NAME);
        try (NoGradGuard noGrad = new NoGradGuard();
                PointerScope scope = new PointerScope()) {
            for (Tensor parameter : model.trainableParameters()) {
                parameter.copy_(
                        torch.randn(org.lora4j.ops.Tensors.shape(parameter)).mul(new Scalar(0.2)));
            }
        }
        return model;
    }

    private static float[] gradients(LoraModel<CausalLM> model) {
        return Weights.of(model.trainableParameters().stream().map(Tensor::grad).toList());
    }

    private static void zero(LoraModel<CausalLM> model) {
        model.trainableParameters().forEach(each -> each.mutable_grad().reset());
    }

    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void chunksOfTheLossAddUpToTheWhole(boolean head) throws IOException {
        LoraModel<CausalLM> model = model(head);
        try (CausalLM base = model.base();
                PointerScope scope = new PointerScope()) {
            Batch batch = Batch.of(TinyTask.counting(5, 9).samples(), 64);
            Tensor whole = base.loss(batch.ids(), batch.labels());
            whole.backward();
            float[] expected = gradients(model);
            for (long elements : new long[] {1, 53 * 3, 1 << 20}) {
                zero(model);
                double sum = new ChunkedLoss(base, elements)
                        .backward(base.hidden(batch.ids(), null, null), batch.labels(), 1.0 / batch.targets());
                assertThat(sum / batch.targets()).isCloseTo(whole.item_double(), within(1e-5));
                assertThat(Weights.difference(expected, gradients(model))).isLessThan(1e-5);
                assertThat(new ChunkedLoss(base, elements).value(base.hidden(batch.ids(), null, null), batch.labels()))
                        .isCloseTo(sum, within(1e-3));
            }
        }
    }

    @Test
    void packedTextsDoNotSeeEachOther() throws IOException {
        LoraModel<CausalLM> model = model(true);
        List<Sample> samples = new ArrayList<>();
        for (int i = 1; i < 8; i++) {
            samples.addAll(TinyTask.counting(i, 2 + i).samples().subList(i - 1, i));
        }
        var options = TrainOptions.builder().steps(1).batchSize(7).maxLength(20);
        try (CausalLM base = model.base()) {
            assertThat(Batch.rows(samples, 20)).hasSizeLessThan(5);
            var apart = new Completions(base, () -> {}, options.packing(false).build());
            double expected = apart.backward(samples, 0.1);
            float[] gradients = gradients(model);
            zero(model);
            var together = new Completions(base, () -> {}, options.packing(true).build());
            assertThat(together.backward(samples, 0.1)).isCloseTo(expected, within(1e-3));
            assertThat(Weights.difference(gradients, gradients(model))).isLessThan(1e-5);
            assertThat(together.value(samples)).isCloseTo(expected, within(1e-3));
        }
    }

    @Test
    void packingFillsRowsAndKeepsEverySample() {
        List<Sample> samples = TinyTask.counting(11, 5).samples();
        List<List<Sample>> rows = Batch.rows(samples, 16);
        assertThat(rows).hasSize(6);
        assertThat(rows.stream().flatMap(List::stream)).containsExactlyInAnyOrderElementsOf(samples);
    }

    @Test
    void accumulationChangesNothing() throws IOException {
        float[] once = trained(1, FusedMode.AUTO);
        assertThat(Weights.difference(once, trained(2, FusedMode.AUTO))).isLessThan(1e-5);
        assertThat(Weights.difference(once, trained(4, FusedMode.AUTO))).isLessThan(1e-5);
        assertThat(Weights.difference(once, trained(1, FusedMode.OFF))).isLessThan(1e-5);
    }

    private static float[] trained(int accumulation, FusedMode mode) throws IOException {
        LoraModel<CausalLM> model = model(true);
        model.training().mode(mode);
        // Examples of different lengths, so that a mean of means would differ.
        List<Sample> samples = new ArrayList<>();
        for (int i = 1; i < 9; i++) {
            samples.addAll(TinyTask.counting(i, 1 + 2 * i).samples().subList(i - 1, i));
        }
        try (CausalLM base = model.base()) {
            var options = TrainOptions.builder()
                    .steps(3)
                    .batchSize(8)
                    .accumulation(accumulation)
                    .learningRate(1e-2)
                    .build();
            new Trainer(model, options).train(Dataset.ofSamples(samples), TrainListener.NONE);
            return Weights.of(model);
        }
    }

    @Test
    void isLibTorchsAdamW() {
        try (PointerScope scope = new PointerScope()) {
            torch.manual_seed(2);
            List<Tensor> ours = new ArrayList<>();
            List<Tensor> theirs = new ArrayList<>();
            for (long[] shape : new long[][] {{3, 5}, {7, 1}, {4, 300}}) {
                Tensor value = torch.randn(shape);
                ours.add(value.clone().set_requires_grad(true));
                theirs.add(value.clone().set_requires_grad(true));
            }
            AdamWOptions options = new AdamWOptions(0.05);
            options.weight_decay().put(0.3);
            var reference = new org.bytedeco.pytorch.AdamW(new TensorVector(theirs.toArray(new Tensor[0])), options);
            try (var full = new AdamW(List.of(new ParameterGroup(ours, 1, true)), 0.3, false)) {
                for (int step = 0; step < 12; step++) {
                    full.zero();
                    reference.zero_grad();
                    for (int i = 0; i < ours.size(); i++) {
                        ours.get(i)
                                .sub(new Scalar(0.7))
                                .pow(new Scalar(4))
                                .sum()
                                .backward();
                        theirs.get(i)
                                .sub(new Scalar(0.7))
                                .pow(new Scalar(4))
                                .sum()
                                .backward();
                    }
                    full.step(0.05);
                    reference.step();
                }
            }
            assertThat(Weights.difference(Weights.of(theirs), Weights.of(ours))).isLessThan(1e-5);
        }
    }

    @Test
    void eightBitMomentsStayCloseToFullOnes() {
        float[] full = minimised(false);
        float[] eight = minimised(true);
        assertThat(eight).isNotEqualTo(full);
        assertThat(Weights.difference(full, eight)).isLessThan(0.05);
    }

    private static float[] minimised(boolean eightBit) {
        try (PointerScope scope = new PointerScope()) {
            torch.manual_seed(4);
            List<Tensor> values = List.of(torch.randn(90, 31).set_requires_grad(true));
            Tensor target = torch.randn(90, 31);
            try (var adam = new AdamW(List.of(new ParameterGroup(values, 1, true)), 0, eightBit)) {
                for (int step = 0; step < 60; step++) {
                    adam.zero();
                    values.get(0).sub(target).pow(new Scalar(2)).sum().backward();
                    adam.step(0.05);
                }
            }
            return Weights.of(values);
        }
    }

    @Test
    void loraPlusLetsBLearnFaster() throws IOException {
        LoraModel<CausalLM> model = model(true);
        try (CausalLM base = model.base()) {
            List<ParameterGroup> groups = ParameterGroup.of(List.of(model.adapter(TinyTask.NAME)), 16);
            assertThat(groups).extracting(ParameterGroup::rate).containsExactly(1.0, 16.0);
            assertThat(groups.get(0).parameters())
                    .allSatisfy(a -> assertThat(a.size(0)).isEqualTo(4));
            assertThat(groups.get(1).parameters())
                    .allSatisfy(b -> assertThat(b.size(1)).isEqualTo(4));
        }
    }

    @Test
    void stopsEarlyAndKeepsTheBest() throws IOException {
        LoraModel<CausalLM> model = TinyTask.model(1);
        Dataset data = TinyTask.counting(6, 4);
        // Held-out data that contradicts the training data: it gets worse with every evaluation after the first ones.
        Dataset other = Dataset.of(
                List.of(new Example("1", "9999"), new Example("8", "8888")),
                text -> text.chars().mapToLong(c -> c - '0' + 5).toArray(),
                text -> text.chars().mapToLong(c -> c - '0' + 5).toArray(),
                TinyTask.EOS);
        var options = TrainOptions.builder()
                .steps(200)
                .batchSize(3)
                .learningRate(2e-2)
                .evalEvery(4)
                .patience(3)
                .output(folder)
                .build();
        List<Double> losses = new ArrayList<>();
        TrainResult result;
        try (CausalLM base = model.base()) {
            result = new Trainer(model, options).train(data, other, new TrainListener() {
                @Override
                public void onStep(int step, int steps, double loss, double learningRate) {}

                @Override
                public void onEvaluation(int step, double loss) {
                    losses.add(loss);
                }
            });
        }
        assertThat(result.steps()).isLessThan(200).isEqualTo(4 * losses.size());
        int best = losses.indexOf(losses.stream().min(Double::compare).orElseThrow());
        assertThat(losses).hasSize(best + 1 + 3);
        assertThat(folder.resolve("best-" + 4 * (best + 1))).isDirectory();
        try (CausalLM base = CausalLM.load(TinyTask.MODEL)) {
            Lora.load(base, folder.resolve("best-" + 4 * (best + 1)), "best");
            assertThat(Trainer.evaluate(base, other, options)).isCloseTo(losses.get(best), within(1e-6));
        }
        assertThat(Files.exists(folder.resolve("checkpoint-" + result.steps()))).isTrue();
    }

    @Test
    void namesTheLastGoodCheckpointWhenTheLossIsNoNumber() throws IOException {
        LoraModel<CausalLM> model = TinyTask.model(1);
        var options = TrainOptions.builder()
                .steps(50)
                .batchSize(2)
                .saveEvery(2)
                .output(folder)
                .build();
        try (CausalLM base = model.base()) {
            var trainer = new Trainer(model, options);
            assertThatIllegalStateException()
                    .isThrownBy(() -> trainer.train(TinyTask.counting(4, 4), (step, steps, loss, rate) -> {
                        if (step == 5) {
                            try (NoGradGuard noGrad = new NoGradGuard()) {
                                model.trainableParameters().get(3).fill_(new Scalar(Double.NaN));
                            }
                        }
                    }))
                    .withMessageContaining("became NaN at step 6")
                    .withMessageEndingWith("; the last good checkpoint is " + folder.resolve("checkpoint-4"));
        }
    }
}
