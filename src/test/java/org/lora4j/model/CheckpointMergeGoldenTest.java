package org.lora4j.model;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.Stream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.lora4j.config.PeftCompat;
import org.lora4j.merge.CheckpointMerge;
import org.lora4j.merge.MemoryTempDir;
import org.lora4j.merge.MergeOptions;
import org.lora4j.merge.MergeProgress;
import org.lora4j.merge.TiedPolicy;
import org.lora4j.merge.WeightedAdapter;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;
import org.lora4j.ops.Tensors;

/**
 * Adapters that PEFT wrote, merged into checkpoints on disk: every tensor is to the bit that of the merge of a loaded model,
 * and within one rounding that of PEFT's {@code merge_and_unload}.
 */
class CheckpointMergeGoldenTest {
    private static final List<String> GROUPS = List.of(
            "adapters",
            "attention",
            "combos",
            "dora",
            "inits",
            "lora_bias",
            "parameters",
            "tokens",
            "tying",
            "other_methods");

    @TempDir(factory = MemoryTempDir.class)
    Path folder;

    static Stream<String> cases() throws IOException {
        List<String> cases = new ArrayList<>();
        for (String group : GROUPS) {
            for (String name : GoldenCase.names(group).toList()) {
                GoldenCase golden =
                        new GoldenCase(GoldenCase.GOLDEN.resolve(group).resolve(name));
                if (golden.strings("rows") == null) {
                    cases.add(group + "/" + name);
                }
            }
        }
        return cases.stream();
    }

    @ParameterizedTest
    @MethodSource("cases")
    void tensorsAreThoseOfTheMergedModelAndOfPeft(String name) throws IOException {
        GoldenCase golden = new GoldenCase(GoldenCase.GOLDEN.resolve(name));
        Path base = checkpoint(golden, folder.resolve("base"));
        String[] active = golden.strings("active");
        List<WeightedAdapter> adapters = new ArrayList<>();
        for (String each : active) {
            golden.adapters().stream()
                    .filter(adapter -> adapter.name().equals(each))
                    .forEach(adapter -> adapters.add(new WeightedAdapter(adapter.folder(), 1)));
        }
        MergeOptions options =
                MergeOptions.of(base, adapters.toArray(new WeightedAdapter[0])).withTied(TiedPolicy.BOTH);
        Path merged = folder.resolve("merged");
        String refused = refused(name, golden);
        if (refused != null) {
            assertThatThrownBy(() -> CheckpointMerge.merge(options, merged, false, MergeProgress.NONE))
                    .hasMessageContaining(refused);
            assertThat(merged).doesNotExist();
            assertThat(merged.resolveSibling("merged.merging")).doesNotExist();
            return;
        }
        CheckpointMerge.merge(options, merged, false, MergeProgress.NONE);
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard();
                MappedTensors ours = TensorFiles.open(merged);
                MappedTensors before = TensorFiles.open(base);
                MappedTensors theirs = TensorFiles.open(golden.folder.resolve("expected.safetensors"))) {
            assertThat(ours.names()).isEqualTo(before.names());
            Map<String, Tensor> loaded = merged(golden);
            int changed = 0;
            for (String tensor : ours.names()) {
                Tensor expected = loaded.get(tensor);
                assertThat(ours.tensor(tensor).equal(expected)).as(tensor).isTrue();
                changed += ours.tensor(tensor).equal(before.tensor(tensor)) ? 0 : 1;
            }
            assertThat(changed).isPositive();
            for (String key : theirs.names()) {
                String tensor = key.replaceFirst("merged\\.", "");
                // These cases hold that PEFT adds the update of an attention's output twice.
                boolean wrong = name.startsWith("attention/twice");
                if (!wrong && key.startsWith("merged.") && ours.names().contains(tensor)) {
                    boolean half = golden.type() != ScalarType.Float;
                    int roundings = golden.json.get("roundings").asInt();
                    double step =
                            (half ? step(golden.type()) : 4e-6) * GoldenCase.largest(theirs.tensor(key)) * roundings;
                    assertThat(GoldenCase.difference(ours.tensor(tensor), theirs.tensor(key)))
                            .as(tensor)
                            .isLessThanOrEqualTo(step);
                }
            }
        }
    }

    /** A part of the message of a merge that is refused, or null. */
    private static String refused(String name, GoldenCase golden) throws IOException {
        if (name.endsWith("_groups")) {
            return "groups";
        }
        if (name.equals("other_methods/alora")) {
            return "alora_invocation_tokens";
        }
        if (name.equals("other_methods/layer_replication")) {
            return "layer_replication";
        }
        for (GoldenCase.Saved adapter : golden.adapters()) {
            if (AdapterFiles.readConfig(adapter.folder()).initLoraWeights().changesBase()) {
                return "init_lora_weights";
            }
        }
        return name.endsWith("llama_bare") ? "bias" : null;
    }

    private static double step(ScalarType type) {
        return type == ScalarType.BFloat16 ? 1.0 / 256 : 1.0 / 2048;
    }

    private static Map<String, Tensor> merged(GoldenCase golden) throws IOException {
        Module base = golden.base();
        LoraModel<Module> model = null;
        for (GoldenCase.Saved adapter : golden.adapters()) {
            if (model == null) {
                model = Lora.load(base, adapter.folder(), adapter.name(), Set.<PeftCompat>of());
            } else {
                model.loadAdapter(adapter.folder(), adapter.name());
            }
        }
        model.setActive(golden.strings("active"));
        model.mergeAndUnload();
        Map<String, Tensor> tensors = new LinkedHashMap<>();
        Parameters.of(base).forEach((path, parameter) -> tensors.put(path, parameter.detach()));
        return tensors;
    }

    /** The base of a case as a checkpoint of the case's type. */
    private static Path checkpoint(GoldenCase golden, Path folder) throws IOException {
        Path source = GoldenCase.GOLDEN.resolve(golden.json.get("base").asString());
        Files.createDirectories(folder);
        try (PointerScope scope = new PointerScope();
                MappedTensors tensors = TensorFiles.open(source)) {
            Map<String, Tensor> typed = new LinkedHashMap<>();
            boolean same = true;
            for (String name : tensors.names()) {
                Tensor tensor = tensors.tensor(name);
                same &= Tensors.type(tensor) == golden.type();
                typed.put(name, tensor.to(golden.type()));
            }
            if (same && Files.isDirectory(source)) {
                return source;
            }
            TensorFiles.write(folder.resolve("model.safetensors"), typed, TensorFiles.METADATA);
            if (Files.isDirectory(source)) {
                Files.copy(source.resolve("config.json"), folder.resolve("config.json"));
            }
        }
        return folder;
    }
}
