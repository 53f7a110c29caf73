package org.lora4j.cli;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.config.LoraConfig;
import org.lora4j.format.DType;
import org.lora4j.merge.MemoryTempDir;
import org.lora4j.merge.TinyCheckpoint;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

/** The verbs for checkpoints as a user runs them: what they print, and with which code they exit. */
class MergeCommandsTest {
    @TempDir(factory = MemoryTempDir.class)
    Path folder;

    private final TinyCheckpoint tiny = new TinyCheckpoint(1, false);
    private StringWriter out = new StringWriter();
    private StringWriter err = new StringWriter();
    private Path base;
    private Path adapter;
    private Path merged;

    @BeforeEach
    void write() throws IOException {
        base = tiny.write(folder.resolve("base"), DType.BF16, 9_000, 1);
        adapter = tiny.adapter(
                folder.resolve("a"), DType.F32, LoraConfig.builder().r(3).loraAlpha(7), 2, "q_proj", "down_proj");
        merged = folder.resolve("merged");
    }

    private int run(Object... arguments) {
        out = new StringWriter();
        err = new StringWriter();
        String[] words = new String[arguments.length];
        for (int i = 0; i < words.length; i++) {
            words[i] = arguments[i].toString();
        }
        return Main.run(new PrintWriter(out), new PrintWriter(err), words);
    }

    private JsonNode json() {
        return new JsonMapper().readTree(out.toString());
    }

    @Test
    void aCheckpointIsInspectedPlannedMergedVerifiedAndRestored() throws IOException {
        assertThat(run("inspect", base, "--json")).isZero();
        assertThat(json().get("kind").asString()).isEqualTo("checkpoint");
        assertThat(json().get("list").get("model.norm.weight").get("dtype").asString())
                .isEqualTo("BF16");
        assertThat(run("inspect", adapter, "--tensors")).isZero();
        assertThat(out.toString()).contains("adapter in PEFT's layout", "q_proj.lora_A.weight: F32[3, 24]");

        assertThat(run("plan", base, "-a", adapter + "=0.5", "--json")).isZero();
        JsonNode change = json().get("changes").get(0);
        assertThat(change.get("actions").get(0).asString()).isEqualTo("adds r=3 scale=1.16667");
        assertThat(change.get("delta_to_weight").asDouble()).isPositive();
        assertThat(change.has("signal_to_rounding_db")).isTrue();
        assertThat(json().has("seconds")).isTrue();
        assertThat(run("plan", base, "-a", adapter)).isZero();
        assertThat(out.toString()).contains("ratio", "signal", "adds r=3 scale=2.33333", "2 tensors change");

        Path residual = folder.resolve("residual");
        assertThat(run("merge", base, "-a", adapter, "-a", adapter + "=-0.25", "-o", merged, "--residual", residual))
                .isZero();
        assertThat(out.toString()).contains("merged into " + merged, "MB/s");
        assertThat(run("verify", merged, "--json")).isZero();
        assertThat(json().get("equal").asBoolean()).isTrue();
        assertThat(run("verify", base, "--manifest", merged, "--inputs")).isZero();

        Path back = folder.resolve("back");
        assertThat(run("unmerge", merged, "--residual", residual, "-o", back)).isZero();
        try (var files = Files.list(base)) {
            for (Path file : files.toList()) {
                assertThat(back.resolve(file.getFileName())).hasSameBinaryContentAs(file);
            }
        }
        Files.writeString(merged.resolve("config.json"), " ", StandardOpenOption.APPEND);
        assertThat(run("verify", merged)).isEqualTo(4);
        assertThat(out.toString()).contains("config.json has other bytes", "NOT as the manifest says");
    }

    @Test
    void theResultMayHaveAnotherTypeAndOtherShardsAndBeInPlace() {
        assertThat(run("merge", base, "-a", adapter, "-o", merged, "--dtype", "f32", "--shard-size", "6KB", "--json"))
                .isZero();
        assertThat(json().get("manifest").get("outputs").size()).isGreaterThan(2);
        assertThat(run("merge", base, "-a", adapter, "--in-place", "--stochastic", 5))
                .isZero();
        assertThat(run("merge", base, "--rollback")).isZero();
        assertThat(out.toString()).contains("nothing to take back");
    }

    @Test
    void failuresHaveTheirExitCodes() throws IOException {
        assertThat(run("merge", base, "-o", merged)).isEqualTo(2);
        assertThat(err.toString()).contains("--adapter");
        assertThat(run("merge", base, "-a", adapter)).isEqualTo(2);
        assertThat(run("merge", base, "-a", adapter, "-o", merged, "--in-place"))
                .isEqualTo(2);
        assertThat(run("merge", base, "-a", adapter, "-o", merged, "--device", "cuda"))
                .isEqualTo(2);
        assertThat(err.toString()).contains("--device is cuda but must be cpu");
        assertThat(run("merge", base, "-a", adapter, "-o", merged, "--shard-size", "many"))
                .isEqualTo(2);
        assertThat(run("merge", folder.resolve("nowhere"), "-a", adapter, "-o", merged))
                .isEqualTo(1);
        assertThat(err.toString()).contains("nowhere");
        Path other = new TinyCheckpoint(3, false)
                .adapter(folder.resolve("b"), DType.F32, LoraConfig.builder().r(2), 2, "k_proj");
        assertThat(run("merge", base, "-a", other, "-o", merged)).isEqualTo(3);
        assertThat(err.toString()).contains("2 problems", "model.layers.1.self_attn.k_proj", "layers.2");
        assertThat(merged).doesNotExist();
        assertThat(run("--help")).isZero();
        assertThat(out.toString()).contains("Exit codes", "4", "generate-completion");
        assertThat(run("generate-completion")).isZero();
        assertThat(out.toString()).contains("complete -F", "unmerge", "--residual");
    }

    @ParameterizedTest
    @ValueSource(strings = {"kohya", "diffusers", "gguf"})
    void otherLayoutsGiveTheSameMerge(String layout) throws IOException {
        String config = Files.readString(base.resolve("config.json"));
        Files.writeString(base.resolve("config.json"), config.replaceFirst("\\{", "{\"num_attention_heads\": 4, "));
        Path file = folder.resolve(layout.equals("gguf") ? "a.gguf" : "a.safetensors");
        Object[] convert = {"convert", adapter, "--to", layout, "-o", file, "--base", base};
        assertThat(run(convert)).as(err.toString()).isZero();
        assertThat(run("inspect", file)).isZero();
        assertThat(out.toString()).containsIgnoringCase(layout);
        assertThat(run("merge", base, "-a", adapter + "=2", "-o", merged)).isZero();
        Path same = folder.resolve("same");
        assertThat(run("merge", base, "-a", file + "=2", "-o", same)).isZero();
        try (var files = Files.list(merged)) {
            for (Path each :
                    files.filter(f -> f.toString().endsWith(".safetensors")).toList()) {
                assertThat(same.resolve(each.getFileName())).hasSameBinaryContentAs(each);
            }
        }
        Path back = folder.resolve("back");
        assertThat(run("convert", file, "--to", "peft", "--base", base, "-o", back))
                .isZero();
        assertThat(back.resolve("adapter_model.safetensors"))
                .hasSameBinaryContentAs(adapter.resolve("adapter_model.safetensors"));
    }
}
