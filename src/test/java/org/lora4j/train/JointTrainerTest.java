package org.lora4j.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;
import static org.assertj.core.api.Assertions.assertThatIllegalStateException;

import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.lora4j.config.LoraConfig;
import org.lora4j.layer.FusedMode;
import org.lora4j.layer.TrainingPath;
import org.lora4j.model.Lora;
import org.lora4j.model.LoraModel;
import org.lora4j.model.causal.CausalLM;

/** Several adapters trained in one batch against each alone. */
class JointTrainerTest {
    @TempDir
    Path folder;

    private static final List<String> NAMES = List.of("one", "two", "three");

    private static LoraConfig config(int index, double dropout) {
        return LoraConfig.builder()
                .r(2 + 3 * index)
                .loraAlpha(7 + index)
                .loraDropout(dropout)
                .targetModules(index == 1 ? List.of("q_proj", "lm_head") : List.of("q_proj", "v_proj", "down_proj"))
                .build();
    }

    private static TrainOptions.Builder options(int index) {
        return TrainOptions.builder()
                .steps(5 + 2 * index)
                .batchSize(3 + index)
                .learningRate(4e-3 * (1 + index))
                .schedule(Schedule.values()[index])
                .warmupSteps(index)
                .evalEvery(index == 2 ? 3 : 0)
                .seed(20 + index);
    }

    /** Examples of one length for all jobs, or of different ones. */
    private static Dataset data(int index, boolean sameLength) {
        return TinyTask.counting(7 + index, sameLength ? 6 : 3 + 4 * index);
    }

    private static LoraModel<CausalLM> model(double dropout) throws IOException {
        CausalLM base = CausalLM.load(TinyTask.MODEL);
        torch.manual_seed(1);
        LoraModel<CausalLM> model = Lora.wrap(base, config(0, dropout), NAMES.get(0));
        for (int i = 1; i < NAMES.size(); i++) {
            model.addAdapter(NAMES.get(i), config(i, dropout));
        }
        return model;
    }

    private static float[] weights(LoraModel<CausalLM> model, String name) {
        return Weights.of(model.adapter(name).parameters());
    }

    private static Map<String, float[]> alone(double dropout, boolean sameLength, List<LossCurve> curves)
            throws IOException {
        Map<String, float[]> results = new LinkedHashMap<>();
        LoraModel<CausalLM> model = model(dropout);
        try (CausalLM base = model.base()) {
            for (int i = 0; i < NAMES.size(); i++) {
                model.setActive(NAMES.get(i));
                LossCurve curve = new LossCurve(NAMES.get(i));
                curves.add(curve);
                Dataset data = data(i, sameLength);
                new Trainer(model, options(i).build()).train(data, data, curve);
                results.put(NAMES.get(i), weights(model, NAMES.get(i)));
            }
        }
        return results;
    }

    private static List<JointTrainer.Job> jobs(boolean sameLength, List<LossCurve> curves) {
        List<JointTrainer.Job> jobs = new ArrayList<>();
        for (int i = 0; i < NAMES.size(); i++) {
            LossCurve curve = new LossCurve(NAMES.get(i));
            curves.add(curve);
            Dataset data = data(i, sameLength);
            jobs.add(new JointTrainer.Job(NAMES.get(i), data, data, options(i).build(), curve));
        }
        return jobs;
    }

    private static void check(double dropout, boolean sameLength) throws IOException {
        List<LossCurve> expectedCurves = new ArrayList<>();
        Map<String, float[]> expected = alone(dropout, sameLength, expectedCurves);
        List<LossCurve> curves = new ArrayList<>();
        LoraModel<CausalLM> model = model(dropout);
        model.training().mode(FusedMode.REQUIRED);
        try (CausalLM base = model.base()) {
            model.setActive("two");
            Map<String, TrainResult> results = new JointTrainer(model, jobs(sameLength, curves)).train();
            assertThat(results.keySet()).containsExactlyInAnyOrderElementsOf(NAMES);
            assertThat(model.activeAdapters()).containsExactly("two");
            assertThat(model.training().taken()).extracting(TrainingPath::kind).contains(TrainingPath.Kind.FUSED);
            for (int i = 0; i < NAMES.size(); i++) {
                assertThat(results.get(NAMES.get(i)).steps()).isEqualTo(5 + 2 * i);
                assertThat(Weights.difference(expected.get(NAMES.get(i)), weights(model, NAMES.get(i))))
                        .as(NAMES.get(i))
                        .isLessThan(1e-4);
                for (int step = 0; step < curves.get(i).steps().size(); step++) {
                    double loss = expectedCurves.get(i).steps().get(step).loss();
                    assertThat(curves.get(i).steps().get(step).loss()).isBetween(loss - 1e-4, loss + 1e-4);
                }
                assertThat(curves.get(i).evaluations())
                        .hasSameSizeAs(expectedCurves.get(i).evaluations());
            }
        }
    }

    @Test
    void eachJobEndsAsIfAlone() throws IOException {
        check(0, false);
    }

    @Test
    void eachJobHasItsOwnDropout() throws IOException {
        check(0.2, true);
    }

    @Test
    void aFailingJobDoesNotStopTheOthers() throws IOException {
        List<LossCurve> ignored = new ArrayList<>();
        Map<String, float[]> expected = alone(0, false, ignored);
        LoraModel<CausalLM> model = model(0);
        try (CausalLM base = model.base()) {
            List<JointTrainer.Job> jobs = new ArrayList<>(jobs(false, new ArrayList<>()));
            JointTrainer.Job broken = jobs.get(1);
            jobs.set(
                    1, new JointTrainer.Job("two", broken.data(), null, broken.options(), (step, steps, loss, rate) -> {
                        if (step == 2) {
                            try (NoGradGuard noGrad = new NoGradGuard()) {
                                for (Tensor each : model.adapter("two").parameters()) {
                                    each.fill_(new Scalar(Double.NaN));
                                }
                            }
                        }
                    }));
            assertThatIllegalStateException()
                    .isThrownBy(() -> new JointTrainer(model, jobs).train())
                    .withMessageContaining("1 of 3 jobs failed: two: the loss became NaN at step 3")
                    .withMessageContaining("The others ended: [one, three]");
            for (String name : List.of("one", "three")) {
                assertThat(Weights.difference(expected.get(name), weights(model, name)))
                        .isLessThan(1e-4);
            }
        }
    }

    @Test
    void eachJobHasCheckpointsAndResumes() throws IOException {
        LoraModel<CausalLM> model = model(0.1);
        Path output = folder.resolve("three");
        try (CausalLM base = model.base()) {
            var options = options(2).output(output).saveEvery(4).build();
            new JointTrainer(
                            model,
                            List.of(
                                    new JointTrainer.Job(
                                            "one",
                                            data(0, true),
                                            null,
                                            options(0).build(),
                                            TrainListener.NONE),
                                    new JointTrainer.Job("three", data(2, true), null, options, TrainListener.NONE)))
                    .train();
        }
        LoraModel<CausalLM> fresh = model(0.1);
        try (CausalLM base = fresh.base()) {
            var options = options(2).output(output).saveEvery(4).resume(true).build();
            TrainResult result = new JointTrainer(
                            fresh,
                            List.of(new JointTrainer.Job("three", data(2, true), null, options, TrainListener.NONE)))
                    .train()
                    .get("three");
            assertThat(result.steps()).isEqualTo(9);
            assertThat(weights(fresh, "three")).isEqualTo(weights(model, "three"));
        }
    }

    @Test
    void refusesWhatCannotShareABatch() throws IOException {
        LoraModel<CausalLM> model = model(0);
        try (CausalLM base = model.base()) {
            JointTrainer.Job job =
                    new JointTrainer.Job("one", data(0, true), null, options(0).build(), TrainListener.NONE);
            assertThatIllegalArgumentException()
                    .isThrownBy(() -> new JointTrainer(model, List.of(job, job)))
                    .withMessageContaining("two jobs train adapter \"one\"");
            assertThatIllegalArgumentException()
                    .isThrownBy(() -> new JointTrainer(model, List.of()))
                    .withMessageContaining("no jobs");
            var packed = options(0).packing(true).build();
            assertThatIllegalArgumentException()
                    .isThrownBy(() -> new JointTrainer(
                            model,
                            List.of(new JointTrainer.Job("one", data(0, true), null, packed, TrainListener.NONE))))
                    .withMessageContaining("packing or accumulation");
        }
    }
}
