package org.lora4j.model;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.stream.Stream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.lora4j.config.LoraConfig;
import org.lora4j.format.AdapterConfigJson;
import org.lora4j.layer.ActiveAdapters;
import org.lora4j.ops.LibTorch;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;
import tools.jackson.databind.node.ObjectNode;

/** What layers and models report in many states, beside PEFT's reports of the same states: status.json. */
class StatusTest {
    private static final JsonMapper JSON = new JsonMapper();

    private static Stream<JsonNode> rows(String list) throws IOException {
        return JSON.readTree(Files.readString(GoldenCase.GOLDEN.resolve("status.json")))
                .get(list)
                .valueStream();
    }

    static Stream<JsonNode> states() throws IOException {
        return rows("states");
    }

    static Stream<JsonNode> reports() throws IOException {
        return Stream.concat(rows("states"), rows("irregular"));
    }

    @ParameterizedTest
    @MethodSource("states")
    void layersAndModelReportWhatPeftReports(JsonNode row) throws IOException {
        try (PointerScope scope = new PointerScope()) {
            LoraModel<Module> model = Lora.wrap(base(row), config(row.get("default")), "default");
            if (!row.get("other").isNull()) {
                model.addAdapter("other", config(row.get("other")));
            }
            row.get("steps").forEach(step -> take(model, step));
            assertThat(model.layerStatus()).as(row.toString()).isEqualTo(layers(row.get("layers")));
            ModelStatus status = model.modelStatus();
            JsonNode expected = row.get("model");
            assertThat(text(status)).isEqualTo(text(expected));
            assertThat(status.trainableParameters())
                    .isEqualTo(expected.get("trainable_params").asLong());
            assertThat(status.totalParameters())
                    .isEqualTo(expected.get("total_params").asLong());
        }
    }

    @ParameterizedTest
    @MethodSource("reports")
    void aModelSaysWhatItsLayersSayTogether(JsonNode row) {
        JsonNode expected = row.get("model");
        ModelStatus status = Status.model(
                "Base",
                expected.get("peft_types").propertyNames(),
                new ActiveAdapters(),
                3,
                7,
                layers(row.get("layers")));
        assertThat(text(status)).isEqualTo(text(expected));
        assertThat(status.trainableParameters()).isEqualTo(3);
        assertThat(status.totalParameters()).isEqualTo(7);
        assertThat(status.baseModelType()).isEqualTo("Base");
    }

    @Test
    void irregularStatesAreAmongTheRows() throws IOException {
        assertThat(reports().map(row -> row.get("model").toString()))
                .anyMatch(model -> model.contains("\"enabled\":\"irregular\""))
                .anyMatch(model -> model.contains("\"active_adapters\":\"irregular\""))
                .anyMatch(model -> model.contains("\"merged_adapters\":\"irregular\""))
                .anyMatch(model -> model.contains("{\"default\":\"irregular\""));
    }

    @Test
    void oneFrozenTensorMakesALayerIrregular() {
        LibTorch.load();
        try (PointerScope scope = new PointerScope()) {
            LoraConfig config =
                    LoraConfig.builder().r(3).targetModules("lin0", "lin1").build();
            LoraModel<Toys.Mlp> model = Lora.wrap(new Toys.Mlp(), config, "a");
            model.adapter("a").weights().get("lin0").b().set_requires_grad(false);
            assertThat(model.layerStatus().stream()
                            .map(layer -> layer.requiresGrad().get("a")))
                    .containsExactly(Common.irregular(), new Common<>(true));
            assertThat(model.modelStatus().requiresGrad().get("a")).hasToString("irregular");
        }
    }

    @Test
    void aModelWithoutAdaptersReportsNone() {
        ActiveAdapters active = new ActiveAdapters();
        ModelStatus status = Status.model("Base", List.of(), active, 0, 7, List.of());
        assertThat(status.enabled().is(true)).isTrue();
        assertThat(status.activeAdapters().is(List.of())).isTrue();
        assertThat(status.adapterLayers()).isZero();
        active.enabled(false);
        assertThat(Status.model("Base", List.of(), active, 0, 7, List.of()).enabled())
                .isEqualTo(new Common<>(false));
    }

    private static Module base(JsonNode row) throws IOException {
        String path = row.get("base").asString();
        String name = path.substring(path.lastIndexOf('/') + 1).replace(".safetensors", "");
        return GoldenCase.base(path, name, ScalarType.Float);
    }

    private static LoraConfig config(JsonNode fields) throws IOException {
        ObjectNode json = JSON.createObjectNode().put("peft_type", "LORA");
        fields.propertyStream().forEach(each -> json.set(each.getKey(), each.getValue()));
        return AdapterConfigJson.parse(json.toString(), "a row of status.json");
    }

    private static void take(LoraModel<Module> model, JsonNode step) {
        List<String> words = strings(step);
        String[] names = words.subList(1, words.size()).toArray(new String[0]);
        switch (words.get(0)) {
            case "activate" -> model.setActive(names);
            case "freeze" -> model.setTrainable(names[0], false);
            case "merge" -> model.mergeAdapter(names);
            case "unmerge" -> model.unmergeAdapter();
            case "disable" -> model.disable();
            case "enable" -> model.enable();
            case "delete" -> model.deleteAdapter(names[0]);
            default -> throw new AssertionError(step);
        }
    }

    private static List<LayerStatus> layers(JsonNode rows) {
        List<LayerStatus> layers = new ArrayList<>();
        for (JsonNode row : rows) {
            layers.add(new LayerStatus(
                    row.get("name").asString(),
                    row.get("module_type").asString(),
                    row.get("enabled").asBoolean(),
                    strings(row.get("active_adapters")),
                    strings(row.get("merged_adapters")),
                    gradients(row.get("requires_grad")),
                    strings(row.get("available_adapters")),
                    devices(row.get("devices")),
                    backend(row)));
        }
        return layers;
    }

    /** The fields that follow from the layers, in one form. */
    private static Map<String, @Nullable Object> text(ModelStatus status) {
        Map<String, @Nullable Object> text = new TreeMap<>();
        text.put("adapter_model_type", status.adapterModelType());
        text.put("peft_types", status.peftTypes());
        text.put("layers", status.adapterLayers());
        text.put("enabled", status.enabled().toString());
        text.put("active", status.activeAdapters().toString());
        text.put("merged", status.mergedAdapters().toString());
        text.put("requires_grad", status.requiresGrad());
        text.put("available", status.availableAdapters());
        text.put("devices", status.devices());
        text.put("quantization_backend", status.quantizationBackend());
        return text;
    }

    private static Map<String, @Nullable Object> text(JsonNode model) {
        Map<String, String> types = new TreeMap<>();
        model.get("peft_types")
                .propertyStream()
                .forEach(each -> types.put(each.getKey(), each.getValue().asString()));
        Map<String, @Nullable Object> text = new TreeMap<>();
        text.put("adapter_model_type", model.get("adapter_model_type").asString());
        text.put("peft_types", types);
        text.put("layers", model.get("num_adapter_layers").asInt());
        text.put("enabled", model.get("enabled").asString());
        text.put("active", listed(model.get("active_adapters")));
        text.put("merged", listed(model.get("merged_adapters")));
        text.put("requires_grad", gradients(model.get("requires_grad")));
        text.put("available", strings(model.get("available_adapters")));
        text.put("devices", devices(model.get("devices")));
        text.put("quantization_backend", backend(model));
        return text;
    }

    private static String listed(JsonNode value) {
        return value.isArray() ? strings(value).toString() : value.asString();
    }

    private static @Nullable String backend(JsonNode row) {
        JsonNode backend = row.get("quantization_backend");
        return backend.isNull() ? null : backend.asString();
    }

    private static List<String> strings(JsonNode list) {
        return list.valueStream().map(JsonNode::asString).toList();
    }

    private static Map<String, Common<Boolean>> gradients(JsonNode row) {
        Map<String, Common<Boolean>> gradients = new TreeMap<>();
        row.propertyStream()
                .forEach(each -> gradients.put(
                        each.getKey(),
                        each.getValue().isBoolean()
                                ? new Common<>(each.getValue().asBoolean())
                                : Common.irregular()));
        return gradients;
    }

    private static Map<String, List<String>> devices(JsonNode row) {
        Map<String, List<String>> devices = new TreeMap<>();
        row.propertyStream().forEach(each -> devices.put(each.getKey(), strings(each.getValue())));
        return devices;
    }
}
