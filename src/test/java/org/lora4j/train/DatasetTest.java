package org.lora4j.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Tensor;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.ops.Tensors;

class DatasetTest {
    private static final long EOS = 9;

    @TempDir
    Path folder;

    @Test
    void readsOneExampleALine() throws IOException {
        Path file = folder.resolve("data.jsonl");
        Files.writeString(
                file,
                "{\"prompt\": \"a\\n\", \"completion\": \"b\"}\n\n{\"x\": 1, \"prompt\": \"\", \"completion\": \"é\"}");
        assertThat(Dataset.readJsonl(file)).containsExactly(new Example("a\n", "b"), new Example("", "é"));
    }

    @ParameterizedTest
    @ValueSource(
            strings = {
                "{\"prompt\": \"a\"}",
                "{\"prompt\": \"a\", \"completion\": 3}",
                "{\"prompt\": null, \"completion\": \"b\"}",
                "{\"prompt\": \"a\", \"completion\": \"b\"} x",
                "{\"prompt\": \"a\"",
                "[]",
                "\"text\""
            })
    void namesTheLineThatIsWrong(String line) throws IOException {
        Path file = folder.resolve("data.jsonl");
        Files.writeString(file, "{\"prompt\": \"a\", \"completion\": \"b\"}\n" + line + "\n");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Dataset.readJsonl(file))
                .withMessageContaining("data.jsonl, line 2")
                .withMessageContaining("a line is {");
    }

    @Test
    void namesTheFileThatIsMissing() {
        assertThatThrownBy(() -> Dataset.readJsonl(folder.resolve("none.jsonl")))
                .isInstanceOf(IOException.class)
                .hasMessageContaining("none.jsonl");
    }

    @Test
    void refusesToBeEmpty() {
        assertThatIllegalArgumentException().isThrownBy(() -> tokenise(List.of()));
    }

    @Test
    void learnsOnlyCompletionsAndTheirEnd() {
        var data = tokenise(List.of(new Example("12", "3"), new Example("", "456"), new Example("1", "")));
        try (var scope = new PointerScope()) {
            Batch batch = Batch.of(data.samples(), 100);
            assertThat(rows(batch.ids())).isEqualTo("[[1, 2, 3, 9], [4, 5, 6, 9], [1, 9, 0, 0]]");
            assertThat(rows(batch.labels())).isEqualTo("[[-100, -100, 3, 9], [-100, 5, 6, 9], [-100, 9, -100, -100]]");
            assertThat(batch.targets()).isEqualTo(6);
        }
    }

    @Test
    void cutsLongExamples() {
        var data = tokenise(List.of(new Example("12", "345"), new Example("1", "2")));
        try (var scope = new PointerScope()) {
            Batch batch = Batch.of(data.samples(), 4);
            assertThat(rows(batch.ids())).isEqualTo("[[1, 2, 3, 4], [1, 2, 9, 0]]");
            assertThat(rows(batch.labels())).isEqualTo("[[-100, -100, 3, 4], [-100, 2, 9, -100]]");
            assertThat(batch.targets()).isEqualTo(4);
        }
    }

    @Test
    void dealsEverySampleOncePerRoundInANewOrder() {
        var examples = new ArrayList<Example>();
        for (int i = 0; i < 10; i++) {
            examples.add(new Example("", String.valueOf(i)));
        }
        List<Sample> samples = tokenise(examples).samples();
        var order = new BatchOrder<>(samples, 4, 11);
        var same = new BatchOrder<>(samples, 4, 11);
        Set<List<Sample>> rounds = new HashSet<>();
        for (int round = 0; round < 3; round++) {
            List<Sample> seen = new ArrayList<>();
            for (int size : new int[] {4, 4, 2}) {
                List<Sample> batch = order.next();
                assertThat(batch).hasSize(size);
                assertThat(same.next()).as("the same seed gives the same order").isEqualTo(batch);
                seen.addAll(batch);
            }
            assertThat(seen).containsExactlyInAnyOrderElementsOf(samples);
            rounds.add(seen);
        }
        assertThat(rounds).hasSize(3);
        assertThat(new BatchOrder<>(samples, 10, 12).next()).isNotIn(rounds);
    }

    private static Dataset tokenise(List<Example> examples) {
        return Dataset.of(examples, DatasetTest::digits, DatasetTest::digits, EOS);
    }

    private static long[] digits(String text) {
        return text.chars().mapToLong(c -> c - '0').toArray();
    }

    private static String rows(Tensor matrix) {
        var rows = new ArrayList<List<Long>>();
        long[] shape = Tensors.shape(matrix);
        for (long r = 0; r < shape[0]; r++) {
            var row = new ArrayList<Long>();
            for (long c = 0; c < shape[1]; c++) {
                row.add(matrix.get(r).get(c).item_long());
            }
            rows.add(row);
        }
        return rows.toString();
    }
}
