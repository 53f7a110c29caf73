package org.lora4j.cli;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.Map;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

/** The verbs combine, extract and resize. */
class CombineVerbsTest {
    private static final String SOURCES = "src/test/resources/golden/combine/sources/";
    private static final String A = SOURCES + "patterns/a";
    private static final String B = SOURCES + "patterns/b";

    private final StringWriter out = new StringWriter();
    private final StringWriter err = new StringWriter();

    @TempDir
    Path folder;

    private int run(String... arguments) {
        return Main.run(new PrintWriter(out, true), new PrintWriter(err, true), arguments);
    }

    private String at(String name) {
        return folder.resolve(name).toString();
    }

    private JsonNode json() throws IOException {
        return new JsonMapper().readTree(Files.readString(folder.resolve("report.json")));
    }

    @ParameterizedTest
    @ValueSource(
            strings = {
                "--type linear",
                "--type exact",
                "--type cat",
                "--type svd --rank 2",
                "--type ties --density 0.5 --majority-sign frequency",
                "--type ties_svd --density 0.5 --clamp 0.9 --peft",
                "--type dare_linear --density 0.7 --seed 3",
                "--type della --density 0.5 --epsilon 0.2",
                "--type breadcrumbs --density 0.5 --gamma 0.02",
                "--type sce --density 0.3 --energy 0.9",
                "--type ties --density 0.4 --space core",
                "--type linear --total-rank 5 --layer-weights lin1=1,0.5"
            })
    void everyTypeCombines(String options) throws IOException {
        String[] given = ("combine " + A + " " + B + " --weights 0.7,-0.4 " + options + " --out " + at("sum")
                        + " --json " + at("report.json") + " --html " + at("report.html"))
                .split(" ");
        assertThat(run(given)).as(err.toString()).isZero();
        assertThat(out.toString())
                .contains("layer", "energy kept", "cosines", "sign conflict", "lin0", "lin1", "adapter in ");
        assertThat(folder.resolve("sum/adapter_config.json")).exists();
        assertThat(json().get("layers").size()).isEqualTo(2);
        assertThat(json().get("layers").get(0).get("cosines").get(0).get(1).asDouble())
                .isBetween(-1.0, 1.0);
        String page = Files.readString(folder.resolve("report.html"));
        assertThat(page).contains("<svg", "Interference", "Rank", "lin0").doesNotContain("NaN");
    }

    @Test
    void slerpTakesTwoWeightsThatAreNotNegative() {
        assertThat(run("combine", A, B, "--weights", "0.7,-0.4", "--type", "slerp", "--out", at("sum")))
                .isEqualTo(1);
        assertThat(err.toString()).contains("slerp goes from one adapter to another");
        assertThat(run("combine", A, B, "--weights", "0.7,0.4", "--type", "slerp", "--out", at("sum")))
                .isZero();
    }

    @Test
    void resizeTellsWhatIsKept() throws IOException {
        assertThat(run("resize", A, "--rank", "1", "--out", at("small"), "--json", at("report.json")))
                .isZero();
        assertThat(json().get("energy").asDouble()).isBetween(0.2, 0.999);
        assertThat(out.toString()).contains("4 > 1", "resize (rank 1)");
    }

    @Test
    void extractMakesAnAdapterOfTwoCheckpoints() throws IOException {
        String base = "src/test/resources/golden/models/llama";
        String tuned = Files.createDirectories(folder.resolve("tuned")).toString();
        try (PointerScope scope = new PointerScope();
                MappedTensors before = TensorFiles.open(Path.of(base))) {
            Map<String, Tensor> after = new LinkedHashMap<>();
            before.names().forEach(name -> {
                Tensor weight = before.tensor(name);
                boolean changes = name.contains("q_proj") || name.contains("norm");
                after.put(name, changes ? weight.add(torch.rand_like(weight)) : weight);
            });
            TensorFiles.writeCheckpoint(Path.of(tuned), after, TensorFiles.METADATA, 1 << 20);
        }
        int code = run(
                "extract",
                base,
                tuned,
                "--energy",
                "0.9",
                "--out",
                at("x"),
                "--json",
                at("report.json"),
                "--html",
                at("p.html"));
        assertThat(code).as(err.toString()).isZero();
        assertThat(json().get("energy").asDouble()).isBetween(0.9, 1.0);
        assertThat(Files.readString(folder.resolve("p.html"))).contains("Singular values");
    }

    @ParameterizedTest
    @CsvSource({
        "combine A B --weights 1 --out O, 1, 2 adapters and 1 weights",
        "combine A B --type tiez --out O, 1, there is no combination type \"tiez\"",
        "combine A B --type ties --out O, 1, density",
        "combine A B --rank 2 --energy 0.5 --out O, 2, mutually exclusive",
        "combine A A --out O, 1, named twice",
        "combine A B --layer-weights lin1 --out O, 2, give a regular expression",
        "combine A nowhere --out O, 1, nowhere",
        "resize A --out O, 2, --rank",
        "extract A B --rank 4, 2, --out",
        "extract A B --rank 4 --out O, 1, model.safetensors"
    })
    void wrongRequestsSayWhy(String line, int code, String message) {
        String given = line.replace(" A", " " + A).replace(" B", " " + B).replace(" O", " " + at("sum"));
        assertThat(run(given.split(" "))).isEqualTo(code);
        assertThat(err.toString()).contains(message);
        assertThat(folder.resolve("sum")).doesNotExist();
    }
}
