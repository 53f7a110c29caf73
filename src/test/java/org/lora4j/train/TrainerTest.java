package org.lora4j.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;
import static org.assertj.core.api.Assertions.assertThatIllegalStateException;

import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.junit.jupiter.api.Test;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.LoraConfigBuilder;
import org.lora4j.model.Lora;
import org.lora4j.model.LoraModel;
import org.lora4j.model.causal.CausalLM;

class TrainerTest {
    private static final int STEPS = 120;
    private static final TrainOptions OPTIONS = options(STEPS).build();

    @Test
    void learnsATaskTheBaseCannotDo() throws IOException {
        LoraModel<CausalLM> model = TinyTask.model(1);
        Dataset data = TinyTask.counting(12, 8);
        try (CausalLM base = model.base()) {
            double untrained = Trainer.evaluate(base, data, OPTIONS);
            var curve = new LossCurve("count");
            TrainResult result = new Trainer(model, OPTIONS).train(data, data, curve);
            double trained = Trainer.evaluate(base, data, OPTIONS);
            // A model that knows nothing is at ln 53 = 3.97 or above; one that always answers right is at 0.
            assertThat(untrained).isGreaterThan(3);
            assertThat(trained).isLessThan(0.5);
            assertThat(result.steps()).isEqualTo(STEPS);
            assertThat(result.tokens()).isEqualTo(STEPS / 3 * 12 * 9);
            assertThat(curve.steps()).hasSize(STEPS);
            assertThat(curve.steps().get(0).loss()).isBetween(untrained - 1, untrained + 1);
            assertThat(curve.evaluations()).extracting(LossCurve.Point::step).containsExactly(50, 100, 120);
            assertThat(curve.evaluations().get(2).loss()).isEqualTo(trained);
            try (var off = model.disabled()) {
                assertThat(Trainer.evaluate(base, data, OPTIONS))
                        .as("the base, adapters off, is as it was")
                        .isEqualTo(untrained);
            }
            assertThat(base.is_training()).as("left in evaluation mode").isFalse();
        }
    }

    @Test
    void isAFunctionOfItsSeeds() throws IOException {
        float[] first = trained(3, 4);
        assertThat(trained(3, 4)).as("same seeds, same bits").isEqualTo(first);
        assertThat(trained(3, 5)).as("another order and dropout").isNotEqualTo(first);
        assertThat(trained(2, 4)).as("another start").isNotEqualTo(first);
    }

    @Test
    void evaluatesAsOneBatchWhateverTheBatchSize() throws IOException {
        LoraModel<CausalLM> model = TinyTask.model(6);
        Dataset data = TinyTask.counting(7, 5);
        try (CausalLM base = model.base()) {
            double whole = Trainer.evaluate(base, data, options(1).batchSize(7).build());
            double parts = Trainer.evaluate(base, data, options(1).batchSize(3).build());
            assertThat(parts).isCloseTo(whole, org.assertj.core.api.Assertions.within(1e-5));
        }
    }

    @Test
    void keepsTheLearningRateOfTheSchedule() throws IOException {
        LoraModel<CausalLM> model = TinyTask.model(7);
        var options = options(4)
                .warmupSteps(2)
                .schedule(Schedule.LINEAR)
                .learningRate(0.5)
                .build();
        List<Double> rates = new ArrayList<>();
        float[] before = values(model);
        List<Boolean> moved = new ArrayList<>();
        try (CausalLM base = model.base()) {
            new Trainer(model, options).train(TinyTask.counting(3, 4), (step, steps, loss, rate) -> {
                rates.add(rate);
                moved.add(!java.util.Arrays.equals(before, values(model)));
            });
        }
        assertThat(rates).containsExactly(0.0, 0.25, 0.5, 0.25);
        assertThat(moved).as("a rate of 0 moves nothing").containsExactly(false, true, true, true);
    }

    @Test
    void trainsAParameterAsTheLayerItBelongsTo() throws IOException {
        float[] layers = trained(LoraConfig.builder().targetModules("q_proj", "down_proj"));
        float[] parameters =
                trained(LoraConfig.builder().targetModules().targetParameters("q_proj.weight", "down_proj.weight"));
        float[] start = new float[layers.length];
        assertThat(parameters).hasSize(layers.length).isNotEqualTo(start);
        double apart = 0;
        double moved = 0;
        for (int i = 0; i < layers.length; i++) {
            apart = Math.max(apart, Math.abs(layers[i] - parameters[i]));
            moved = Math.max(moved, Math.abs(layers[i]));
        }
        assertThat(apart).isLessThan(2e-3 * moved);
    }

    private static float[] trained(LoraConfigBuilder config) throws IOException {
        CausalLM base = CausalLM.load(Path.of("src/test/resources/golden/models/llama"));
        torch.manual_seed(4);
        LoraModel<CausalLM> model = Lora.wrap(base, config.r(3).loraAlpha(7).build(), "default");
        try (base) {
            new Trainer(model, options(6).build()).train(TinyTask.counting(9, 6), TrainListener.NONE);
            return values(model);
        }
    }

    @Test
    void saysWhichExampleIsTooLong() throws IOException {
        LoraModel<CausalLM> model = TinyTask.model(1);
        Dataset data = Dataset.of(
                List.of(new Example("1", "2"), new Example("1234", "5")),
                text -> text.chars().asLongStream().map(c -> c - 40).toArray(),
                text -> text.chars().asLongStream().map(c -> c - 40).toArray(),
                TinyTask.EOS);
        try (CausalLM base = model.base()) {
            var trainer = new Trainer(model, options(1).maxLength(4).build());
            assertThatIllegalArgumentException()
                    .isThrownBy(() -> trainer.train(data, TrainListener.NONE))
                    .withMessageContaining("example 1 has a prompt of 4 tokens")
                    .withMessageContaining("maxLength = 4");
        }
    }

    @Test
    void stopsWhenTheLossIsNoNumber() throws IOException {
        LoraModel<CausalLM> model = TinyTask.model(1);
        var options = options(50)
                .learningRate(1e30)
                .maxGradNorm(Double.POSITIVE_INFINITY)
                .build();
        try (CausalLM base = model.base()) {
            var trainer = new Trainer(model, options);
            assertThatIllegalStateException()
                    .isThrownBy(() -> trainer.train(TinyTask.counting(4, 4), TrainListener.NONE))
                    .withMessageMatching("the loss became .* at step [0-9]+: lower the learning rate.*");
        }
    }

    @Test
    void refusesAModelWithNothingToTrain() throws IOException {
        LoraModel<CausalLM> model = TinyTask.model(1);
        try (CausalLM base = model.base();
                var off = model.disabled()) {
            assertThatIllegalStateException().isThrownBy(() -> new Trainer(model, OPTIONS));
        }
    }

    private static TrainOptions.Builder options(int steps) {
        return TrainOptions.builder()
                .steps(steps)
                .batchSize(4)
                .learningRate(1e-2)
                .schedule(Schedule.CONSTANT)
                .evalEvery(50);
    }

    private static float[] trained(long start, long order) throws IOException {
        LoraModel<CausalLM> model = TinyTask.model(start);
        try (CausalLM base = model.base()) {
            new Trainer(model, options(20).seed(order).build()).train(TinyTask.counting(9, 6), TrainListener.NONE);
            return values(model);
        }
    }

    /** All trainable values of a model. */
    private static float[] values(LoraModel<CausalLM> model) {
        List<Tensor> parameters = model.trainableParameters();
        long count = parameters.stream().mapToLong(Tensor::numel).sum();
        float[] values = new float[(int) count];
        int at = 0;
        for (Tensor parameter : parameters) {
            int size = (int) parameter.numel();
            new FloatPointer(parameter.data_ptr()).get(values, at, size);
            at += size;
        }
        return values;
    }
}
