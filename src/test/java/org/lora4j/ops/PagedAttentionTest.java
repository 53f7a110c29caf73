package org.lora4j.ops;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Random;
import java.util.stream.IntStream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.lora4j.ops.binding.Lora4j;

class PagedAttentionTest {
    private static final int PAGE = 4;
    private static final int PAGES = 60;

    /** A batch of several sequences, of which some tokens are asked for, over shuffled pages. */
    private record Case(Paging paging, Tensor query, Tensor keys, Tensor values) {
        static Case random(long seed, ScalarType type, int heads, int kvHeads, int width, int window) {
            Random random = new Random(seed);
            torch.manual_seed(seed);
            List<Integer> free =
                    new ArrayList<>(IntStream.range(0, PAGES).boxed().toList());
            Collections.shuffle(free, random);
            int[] lengths = {1, 5, 37, 8};
            int columns = 12;
            int[] table = new int[lengths.length * columns];
            List<Integer> sequences = new ArrayList<>();
            List<Integer> positions = new ArrayList<>();
            for (int s = 0; s < lengths.length; s++) {
                for (int i = 0; i <= (lengths[s] - 1) / PAGE; i++) {
                    table[s * columns + i] = free.remove(0);
                }
                for (int t = Math.max(0, lengths[s] - 1 - 3 * s); t < lengths[s]; t++) {
                    sequences.add(s);
                    positions.add(t);
                }
            }
            Paging paging = new Paging(heads, kvHeads, PAGE, window, ints(sequences), ints(positions), table, columns);
            long slots = (long) PAGES * PAGE;
            return new Case(
                    paging,
                    torch.randn(new long[] {positions.size(), (long) heads * width})
                            .to(type),
                    torch.randn(new long[] {slots, (long) kvHeads * width}).to(type),
                    torch.randn(new long[] {slots, (long) kvHeads * width}).to(type));
        }

        private static int[] ints(List<Integer> list) {
            return list.stream().mapToInt(Integer::intValue).toArray();
        }

        Tensor run(LoraOps ops) {
            Tensor out = torch.full_like(query, new org.bytedeco.pytorch.Scalar(Double.NaN));
            ops.attention(out, query, keys, values, paging);
            return out;
        }
    }

    @AfterEach
    void bestInstructions() {
        Lora4j.l4_set_cpu_isa(null);
    }

    @ParameterizedTest
    @CsvSource({
        "1, Float, 4, 2, 64, 0",
        "2, Float, 6, 2, 4, 0",
        "3, Float, 3, 3, 37, 0",
        "4, BFloat16, 4, 2, 64, 0",
        "5, Half, 8, 1, 16, 0",
        "6, Float, 4, 2, 20, 3",
        "7, BFloat16, 2, 2, 128, 9"
    })
    void isWhatLibTorchComputesWhateverTheInstructions(
            long seed, ScalarType type, int heads, int kvHeads, int width, int window) {
        try (PointerScope scope = new PointerScope()) {
            Case wide = Case.random(seed, ScalarType.Float, heads, kvHeads, width, window);
            Case typed = new Case(
                    wide.paging(),
                    wide.query().to(type),
                    wide.keys().to(type),
                    wide.values().to(type));
            Case exact = new Case(
                    wide.paging(),
                    typed.query().to(ScalarType.Double),
                    typed.keys().to(ScalarType.Double),
                    typed.values().to(ScalarType.Double));
            Tensor expected = exact.run(Ops.named("torch"));
            double tolerance = type == ScalarType.Float ? 2e-6 : type == ScalarType.Half ? 1e-3 : 8e-3;
            Tensor best = typed.run(Ops.named("native"));
            assertThat(best.to(ScalarType.Double).allclose(expected, tolerance, tolerance, false))
                    .isTrue();
            for (String isa : List.of("plain", "avx2")) {
                assertThat(Lora4j.l4_set_cpu_isa(isa)).as(isa).isZero();
                assertThat(typed.run(Ops.named("native")).equal(best)).as(isa).isTrue();
            }
        }
    }

    @Test
    void aTokenHasTheSameBitsAloneAndOnOtherPages() {
        LoraOps ops = Ops.named("native");
        try (PointerScope scope = new PointerScope()) {
            Case all = Case.random(11, ScalarType.BFloat16, 4, 2, 64, 0);
            Tensor together = all.run(ops);
            Paging p = all.paging();
            for (int t = 0; t < p.sequences().length; t++) {
                int[] moved = new int[p.tableWidth()];
                Tensor keys = torch.randn(new long[] {48, 128}).to(ScalarType.BFloat16);
                Tensor values = torch.randn(new long[] {48, 128}).to(ScalarType.BFloat16);
                for (int i = 0; i <= p.positions()[t] / PAGE; i++) {
                    moved[i] = 11 - i;
                    int page = p.pages()[p.sequences()[t] * p.tableWidth() + i];
                    keys.narrow(0, (11 - i) * PAGE, PAGE).copy_(all.keys().narrow(0, (long) page * PAGE, PAGE));
                    values.narrow(0, (11 - i) * PAGE, PAGE).copy_(all.values().narrow(0, (long) page * PAGE, PAGE));
                }
                Paging alone =
                        new Paging(4, 2, PAGE, 0, new int[] {0}, new int[] {p.positions()[t]}, moved, p.tableWidth());
                Tensor y = new Case(alone, all.query().narrow(0, t, 1), keys, values).run(ops);
                assertThat(y.equal(together.narrow(0, t, 1))).as("token %d", t).isTrue();
            }
        }
    }

    @Test
    void extremeScoresAndLongSequencesStayFinite() {
        try (PointerScope scope = new PointerScope()) {
            Case plain = Case.random(3, ScalarType.Float, 2, 1, 8, 0);
            Case large = new Case(
                    plain.paging(),
                    plain.query().mul(new org.bytedeco.pytorch.Scalar(1e4)),
                    plain.keys(),
                    plain.values());
            Tensor expected = large.run(Ops.named("torch"));
            assertThat(large.run(Ops.named("native")).allclose(expected, 1e-5, 1e-5, false))
                    .isTrue();
        }
    }

    @Test
    void argumentsThatDoNotFitAreNamed() {
        LoraOps ops = Ops.named("native");
        try (PointerScope scope = new PointerScope()) {
            Case good = Case.random(1, ScalarType.Float, 4, 2, 8, 0);
            Paging p = good.paging();
            int[] pages = p.pages().clone();
            pages[0] = PAGES;
            Paging wrong = new Paging(4, 2, PAGE, 0, p.sequences(), p.positions(), pages, p.tableWidth());
            assertThatThrownBy(() -> new Case(wrong, good.query(), good.keys(), good.values()).run(ops))
                    .hasMessageContaining("page 0 of sequence 0 is 60; there are 60");
            assertThatThrownBy(() -> new Case(p, good.query(), good.keys().to(ScalarType.Half), good.values()).run(ops))
                    .hasMessageContaining("keys has another dtype");
            assertThatThrownBy(() -> new Paging(4, 3, PAGE, 0, p.sequences(), p.positions(), p.pages(), 12))
                    .hasMessageContaining("kvHeads must divide heads");
            assertThat(p.slot(1)).isEqualTo((long) p.pages()[12] * PAGE + p.positions()[1] % PAGE);
        }
    }
}
