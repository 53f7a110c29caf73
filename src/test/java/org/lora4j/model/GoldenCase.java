package org.lora4j.model;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.model.causal.CausalLM;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;
import org.lora4j.ops.Tensors;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

/** One case of src/test/resources/golden: a base model, adapters and what PEFT computes with them. */
final class GoldenCase {
    static final Path GOLDEN = Path.of("src/test/resources/golden");

    /** An adapter of a case. */
    record Saved(String name, Path folder) {}

    final Path folder;
    final JsonNode json;

    GoldenCase(Path folder) throws IOException {
        this.folder = folder;
        this.json = new JsonMapper().readTree(Files.readString(folder.resolve("case.json")));
    }

    static Stream<String> names(String group) throws IOException {
        try (Stream<Path> folders = Files.list(GOLDEN.resolve(group))) {
            return folders.map(f -> f.getFileName().toString()).sorted().toList().stream();
        }
    }

    String model() {
        return json.get("model").asString();
    }

    ScalarType type() {
        return switch (json.path("dtype").asString("float32")) {
            case "float32" -> ScalarType.Float;
            case "bfloat16" -> ScalarType.BFloat16;
            case "float16" -> ScalarType.Half;
            default -> throw new IllegalArgumentException(json.get("dtype").asString());
        };
    }

    List<Saved> adapters() {
        List<Saved> adapters = new ArrayList<>();
        for (JsonNode each : json.get("adapters")) {
            adapters.add(new Saved(
                    each.get("name").asString(), folder.resolve(each.get("path").asString())));
        }
        return adapters;
    }

    /** The strings of an array, or null if it is null. */
    String[] strings(String field) {
        JsonNode array = json.get(field);
        return array.isNull()
                ? null
                : array.valueStream().map(JsonNode::asString).toArray(String[]::new);
    }

    /** The base model with the case's weights and type, in evaluation mode. */
    Module base() throws IOException {
        return base(json.get("base").asString(), model(), type());
    }

    static Module base(String path, String model, ScalarType type) throws IOException {
        if (path.startsWith("models/")) {
            return CausalLM.load(GOLDEN.resolve(path), type);
        }
        Toys.Net net = Toys.of(model);
        try (MappedTensors weights = TensorFiles.open(GOLDEN.resolve(path));
                NoGradGuard guard = new NoGradGuard()) {
            for (Map.Entry<String, Tensor> each : Parameters.of(net).entrySet()) {
                each.getValue().set_data(weights.tensor(each.getKey()).to(type).clone());
            }
        }
        net.eval();
        return net;
    }

    static Tensor forward(Module model, Tensor input) {
        return model instanceof CausalLM lm ? lm.forward(input) : ((Toys.Net) model).forward(input);
    }

    /** The case's input: token ids as they are, else in the type of the base. */
    Tensor input(MappedTensors expected) {
        return expected.tensor(expected.names().contains("input_ids") ? "input_ids" : "input");
    }

    static Tensor output(MappedTensors expected, String prefix) {
        return expected.tensor(prefix + (expected.names().contains("logits") ? "logits" : "output"));
    }

    /** Largest absolute difference; infinite if shapes differ or a value is not a number. */
    static double difference(Tensor a, Tensor b) {
        if (!java.util.Arrays.equals(Tensors.shape(a), Tensors.shape(b))) {
            return Double.POSITIVE_INFINITY;
        }
        double largest = a.detach()
                .to(ScalarType.Double)
                .sub(b.detach().to(ScalarType.Double))
                .abs()
                .max()
                .item_double();
        return Double.isNaN(largest) ? Double.POSITIVE_INFINITY : largest;
    }

    static double largest(Tensor a) {
        return a.detach().to(ScalarType.Double).abs().max().item_double();
    }
}
