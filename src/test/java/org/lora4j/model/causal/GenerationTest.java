package org.lora4j.model.causal;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.bytedeco.javacpp.Pointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class GenerationTest {
    private static final long[][] PROMPTS = {{3, 1, 4}, {1}, {5, 9, 2, 6, 5, 3, 5}};

    @TempDir
    Path folder;

    private CausalLM model() throws IOException {
        return CausalLM.load(TinyModels.write(folder, TinyModels.LLAMA, ScalarType.Float, 21));
    }

    @Test
    void aSeedFixesTheDrawsOfEachRow() throws IOException {
        try (CausalLM model = model()) {
            GenerationOptions options = GenerationOptions.sampled(15, 7)
                    .withTemperature(1.3)
                    .withTopK(30)
                    .withTopP(0.95);
            long[][] batch = model.generate(PROMPTS, options);
            assertThat(model.generate(PROMPTS, options)).isDeepEqualTo(batch);
            assertThat(model.generate(new long[][] {PROMPTS[0]}, options)[0]).isEqualTo(batch[0]);
            long[][] same = model.generate(new long[][] {PROMPTS[2], PROMPTS[2]}, options);
            assertThat(same[0]).as("rows draw on their own").isNotEqualTo(same[1]);
            long[][] other = model.generate(
                    PROMPTS,
                    GenerationOptions.sampled(15, 8)
                            .withTemperature(1.3)
                            .withTopK(30)
                            .withTopP(0.95));
            assertThat(Arrays.deepEquals(other, batch)).as("another seed").isFalse();
        }
    }

    @Test
    void rowsEndAtTheirEndToken() throws IOException {
        try (CausalLM model = model()) {
            long[][] free = model.generate(PROMPTS, GenerationOptions.greedy(20));
            assertThat(Arrays.stream(free).mapToInt(row -> row.length)).containsOnly(20);
            long end = free[0][4];
            List<List<Long>> heard = List.of(new ArrayList<>(), new ArrayList<>(), new ArrayList<>());
            long[][] ended = model.generate(
                    PROMPTS,
                    GenerationOptions.greedy(20).withEosTokenIds(end, 1_000_000L),
                    (row, token) -> heard.get(row).add(token));
            for (int row = 0; row < free.length; row++) {
                int length = 0;
                while (length < 20 && free[row][length++] != end) {}
                assertThat(ended[row]).isEqualTo(Arrays.copyOf(free[row], length));
                assertThat(heard.get(row))
                        .containsExactly(Arrays.stream(ended[row]).boxed().toArray(Long[]::new));
            }
            assertThat(ended[0].length).isLessThan(20);
        }
    }

    @Test
    void theModelsEndTokenIsTheDefault() throws IOException {
        long end;
        try (CausalLM model = model()) {
            end = model.generate(PROMPTS, GenerationOptions.greedy(6))[0][2];
        }
        Path other = folder.resolve("other");
        TinyModels.write(other, TinyModels.with("\"eos_token_id\": " + end), ScalarType.Float, 21);
        try (CausalLM model = CausalLM.load(other)) {
            long[] row = model.generate(PROMPTS, GenerationOptions.greedy(6))[0];
            assertThat(row[row.length - 1]).isEqualTo(end);
            assertThat(row.length).isLessThanOrEqualTo(3);
            assertThat(model.generate(PROMPTS, GenerationOptions.greedy(6).withEosTokenIds())[0])
                    .hasSize(6);
        }
    }

    @Test
    void aPenaltyKeepsTokensFromComingBack() throws IOException {
        try (CausalLM model = model()) {
            long[] row = model.generate(PROMPTS, GenerationOptions.greedy(20).withRepetitionPenalty(1e6))[2];
            assertThat(Arrays.stream(row).distinct().count()).isEqualTo(20);
            assertThat(row).doesNotContain(PROMPTS[2]);
        }
    }

    @Test
    void wrongPromptsAreNamed() throws IOException {
        try (CausalLM model = model()) {
            GenerationOptions options = GenerationOptions.greedy(2);
            assertThat(model.generate(new long[0][], options)).isEmpty();
            assertThatThrownBy(() -> model.generate(new long[][] {{1}, {}}, options))
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessageContaining("prompt 1 is empty");
            assertThatThrownBy(() -> model.generate(new long[][] {{1, 41}}, options))
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessageContaining("token 41");
        }
        assertThatThrownBy(() -> GenerationOptions.greedy(0)).hasMessageContaining("maxNewTokens is 0");
        GenerationOptions sampled = GenerationOptions.sampled(3, 1);
        assertThatThrownBy(() -> sampled.withTemperature(0)).hasMessageContaining("temperature is 0.0");
        assertThatThrownBy(() -> sampled.withTopK(-1)).hasMessageContaining("topK is -1");
        assertThatThrownBy(() -> sampled.withTopP(1.1)).hasMessageContaining("topP is 1.1");
        assertThatThrownBy(() -> sampled.withRepetitionPenalty(0)).hasMessageContaining("repetitionPenalty is 0.0");
    }

    /** Frequencies of draws follow the softmax, cut by rank and by share. */
    @Test
    void drawsFollowTheDistribution() {
        double[] p = {0.5, 0.2, 0.15, 0.1, 0.05};
        check(p, GenerationOptions.sampled(1, 3), p);
        check(p, GenerationOptions.sampled(1, 4).withTopK(2), new double[] {5 / 7.0, 2 / 7.0, 0, 0, 0});
        check(p, GenerationOptions.sampled(1, 5).withTopP(0.8), new double[] {50 / 85.0, 20 / 85.0, 15 / 85.0, 0, 0});
        check(p, GenerationOptions.sampled(1, 6).withTopP(0.01), new double[] {1, 0, 0, 0, 0});
        double[] cold = Arrays.stream(p).map(x -> x * x).toArray();
        double sum = Arrays.stream(cold).sum();
        check(
                p,
                GenerationOptions.sampled(1, 7).withTemperature(0.5),
                Arrays.stream(cold).map(x -> x / sum).toArray());
    }

    private static void check(double[] p, GenerationOptions options, double[] expected) {
        int draws = 20_000;
        double[] seen = new double[p.length];
        Sampler sampler = new Sampler(options, 0, new long[0]);
        for (int i = 0; i < draws; i++) {
            float[] logits = new float[p.length];
            for (int j = 0; j < p.length; j++) {
                logits[j] = (float) Math.log(p[j]) + 3;
            }
            seen[sampler.next(logits)] += 1.0 / draws;
        }
        for (int j = 0; j < p.length; j++) {
            // Five standard deviations of a share.
            double deviation = Math.sqrt(expected[j] * (1 - expected[j]) / draws);
            assertThat(seen[j])
                    .as("token %d of %s", j, options)
                    .isCloseTo(expected[j], org.assertj.core.data.Offset.offset(5 * deviation + 1e-9));
        }
    }

    /** Nothing native is left behind by a call: neither handles nor memory. */
    @Test
    void memoryDoesNotGrow() throws IOException {
        try (PointerScope scope = new PointerScope();
                CausalLM model = model()) {
            GenerationOptions options = GenerationOptions.sampled(10, 1);
            generate(model, options, 100);
            long handles = Pointer.totalCount();
            long resident = Pointer.physicalBytes();
            generate(model, options, 300);
            assertThat(Pointer.totalCount()).isLessThanOrEqualTo(handles);
            assertThat(Pointer.physicalBytes() - resident).isLessThan(16L << 20);
        }
    }

    /** Collects now and then, so that the Java heap does not grow into memory it has not touched before. */
    private static void generate(CausalLM model, GenerationOptions options, int calls) {
        for (int i = 0; i < calls; i++) {
            model.generate(PROMPTS, options);
            if (i % 20 == 19) {
                System.gc();
            }
        }
    }
}
