package org.lora4j.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;
import static org.assertj.core.api.Assertions.within;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.lora4j.config.LoraConfig;
import org.lora4j.model.Lora;
import org.lora4j.model.LoraModel;
import org.lora4j.model.causal.CausalLM;
import org.lora4j.model.causal.Tokenizer;
import org.lora4j.ops.Tensors;
import org.lora4j.train.PreferencePairs.Pair;

class PreferencesTest {
    private static final double BETA = 0.3;

    @TempDir
    Path folder;

    private static LoraModel<CausalLM> model() throws IOException {
        CausalLM base = CausalLM.load(TinyTask.MODEL);
        torch.manual_seed(3);
        LoraConfig config = LoraConfig.builder()
                .r(4)
                .loraAlpha(12)
                .targetModules("q_proj", "down_proj", "lm_head")
                .build();
        LoraModel<CausalLM> model = Lora.wrap(base, config, TinyTask.NAME);
        try (NoGradGuard noGrad = new NoGradGuard();
                PointerScope scope = new PointerScope()) {
            for (Tensor parameter : model.trainableParameters()) {
                parameter.copy_(torch.randn(Tensors.shape(parameter)).mul(new Scalar(0.2)));
            }
        }
        return model;
    }

    /** Pairs whose answers differ in length. */
    private static List<Pair> pairs() {
        List<Pair> pairs = new ArrayList<>();
        for (int i = 1; i < 5; i++) {
            pairs.add(new Pair(
                    TinyTask.counting(i, 2 + i).samples().get(i - 1),
                    TinyTask.counting(i, 9 - i).samples().get(i - 1)));
        }
        return pairs;
    }

    /** The loss with all logits at once, differentiable. */
    private static Tensor plain(LoraModel<CausalLM> model, List<Pair> pairs) {
        Tensor total = null;
        for (Pair pair : pairs) {
            Tensor gain = null;
            for (Sample sample : List.of(pair.chosen(), pair.rejected())) {
                Tensor policy = logProbability(model.base(), sample);
                Tensor reference;
                try (var off = model.disabled();
                        NoGradGuard noGrad = new NoGradGuard()) {
                    reference = logProbability(model.base(), sample);
                }
                Tensor own = policy.sub(reference);
                gain = gain == null ? own : gain.sub(own);
            }
            Tensor loss = torch.log_sigmoid(gain.mul(new Scalar(BETA))).neg();
            total = total == null ? loss : total.add(loss);
        }
        return total;
    }

    private static Tensor logProbability(CausalLM base, Sample sample) {
        long[] ids = sample.ids();
        Tensor logits = base.forward(Tensor.create(ids, 1, ids.length)).get(0);
        Tensor all = torch.log_softmax(logits, -1);
        Tensor sum = torch.zeros(1);
        for (int i = 1; i < ids.length; i++) {
            if (sample.learned(i)) {
                sum = sum.add(all.get(i - 1).get(ids[i]));
            }
        }
        return sum;
    }

    @Test
    void lossAndGradientAreThoseOfThePlainFormula() throws IOException {
        LoraModel<CausalLM> model = model();
        var options = TrainOptions.builder().steps(1).batchSize(4).maxLength(32).build();
        try (CausalLM base = model.base();
                PointerScope scope = new PointerScope()) {
            Tensor expected = plain(model, pairs());
            expected.mul(new Scalar(0.25)).backward();
            float[] gradients = gradients(model);
            model.trainableParameters().forEach(each -> each.mutable_grad().reset());
            Preferences objective = new Preferences(model, options, BETA);
            double sum = objective.backward(pairs(), 0.25);
            assertThat(sum).isCloseTo(expected.item_double(), within(1e-4));
            assertThat(Weights.difference(gradients, gradients(model))).isLessThan(2e-5);
            assertThat(objective.value(pairs())).isCloseTo(sum, within(1e-4));
        }
    }

    private static float[] gradients(LoraModel<CausalLM> model) {
        return Weights.of(model.trainableParameters().stream().map(Tensor::grad).toList());
    }

    @Test
    void learnsToPrefer() throws IOException {
        LoraModel<CausalLM> model = TinyTask.model(2);
        var options = TrainOptions.builder()
                .steps(40)
                .batchSize(4)
                .learningRate(1e-2)
                .evalEvery(40)
                .build();
        PreferencePairs data = new PreferencePairs(pairs());
        LossCurve curve = new LossCurve("dpo");
        try (CausalLM base = model.base()) {
            new Trainer(model, options).trainPreferences(data, data, BETA, curve);
        }
        assertThat(curve.steps().get(0).loss())
                .as("a new adapter is the reference")
                .isCloseTo(Math.log(2), within(1e-4));
        assertThat(curve.evaluations().get(0).loss()).isLessThan(0.2);
    }

    @Test
    void readsPairsAndNamesBadLines() throws IOException {
        Path file = folder.resolve("pairs.jsonl");
        try (Tokenizer tokenizer = Tokenizer.load(Path.of("src/test/resources/demo/base"))) {
            Files.writeString(file, "{\"prompt\": \"Hi\", \"chosen\": \"Peace\", \"rejected\": \"Go away\"}\n");
            PreferencePairs pairs = PreferencePairs.read(file, tokenizer, 32);
            assertThat(pairs.size()).isEqualTo(1);
            Pair pair = pairs.pairs().get(0);
            assertThat(pair.chosen().promptLength()).isEqualTo(pair.rejected().promptLength());
            Files.writeString(file, "\n{\"prompt\": \"Hi\", \"chosen\": \"Peace\"}\n");
            assertThatIllegalArgumentException()
                    .isThrownBy(() -> PreferencePairs.read(file, tokenizer, 32))
                    .withMessageStartingWith(file + ", line 2 lacks the text \"rejected\"");
        }
    }

    @Test
    void refusesABetaThatMeansNothing() throws IOException {
        LoraModel<CausalLM> model = TinyTask.model(2);
        var options = TrainOptions.builder().steps(1).build();
        try (CausalLM base = model.base()) {
            assertThatIllegalArgumentException()
                    .isThrownBy(() -> new Trainer(model, options)
                            .trainPreferences(new PreferencePairs(pairs()), null, 0, TrainListener.NONE))
                    .withMessageStartingWith("beta = 0.0");
        }
    }
}
