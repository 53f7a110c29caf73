package org.lora4j.combine;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.EnumSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.function.Supplier;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.ModuleSelector;
import org.lora4j.config.PeftCompat;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

/** A case of golden/combine, replayed by the pure functions with the masks that PEFT drew. */
public final class PeftCombination implements AutoCloseable {
    private static final Path GOLDEN = Path.of("src/test/resources/golden");

    private final JsonNode json;
    private final List<AdapterSource> sources = new ArrayList<>();
    private final List<Double> weights = new ArrayList<>();
    private final MappedTensors base;
    private final MappedTensors expected;

    public PeftCombination(Path folder) throws IOException {
        json = new JsonMapper().readTree(Files.readString(folder.resolve("case.json")));
        for (JsonNode each : json.get("adapters")) {
            sources.add(AdapterSource.open(folder.resolve(each.get("path").asString())));
        }
        json.get("weights").forEach(weight -> weights.add(weight.asDouble()));
        base = TensorFiles.open(GOLDEN.resolve(json.get("base").asString()));
        expected = TensorFiles.open(folder.resolve("expected.safetensors"));
    }

    /** The options of the case. */
    public CombineOptions options(boolean asPeft) {
        CombineOptions.Builder builder = CombineOptions.builder(
                        CombinationType.of(json.get("type").asString()))
                .differentTargets(true);
        JsonNode given = json.get("options");
        if (given.has("density")) {
            builder.density(given.get("density").asDouble());
        }
        if (given.has("svd_rank")) {
            builder.rank(given.get("svd_rank").asInt());
        }
        if (given.has("svd_clamp")) {
            builder.clamp(given.get("svd_clamp").asDouble());
        }
        if (given.path("majority_sign_method").asString("total").equals("frequency")) {
            builder.majoritySign(MajoritySign.FREQUENCY);
        }
        return asPeft ? builder.compat(switches()).build() : builder.build();
    }

    private Set<PeftCompat> switches() {
        Set<PeftCompat> switches = EnumSet.noneOf(PeftCompat.class);
        json.get("switches").forEach(name -> switches.add(PeftCompat.valueOf(name.asString())));
        return switches;
    }

    public List<Double> weights() {
        return weights;
    }

    public MappedTensors expected() {
        return expected;
    }

    /** Scaling times B A, bias and magnitude of each layer, by the names of the expected tensors. */
    public Map<String, Tensor> replay() {
        CombineOptions options = options(true);
        Set<String> modules = new TreeSet<>();
        sources.forEach(source -> modules.addAll(source.layers().keySet()));
        Map<String, Combined> combined = new LinkedHashMap<>();
        Map<String, Integer> ranks = new LinkedHashMap<>();
        for (String module : modules) {
            List<LayerInput.Member> members = new ArrayList<>();
            for (int i = 0; i < sources.size(); i++) {
                if (sources.get(i).layers().containsKey(module)) {
                    members.add(sources.get(i).member(module, i, weights.get(i)));
                }
            }
            Supplier<Tensor> weight = () -> base.tensor(module + ".weight");
            Combined each = Combined.of(new LayerInput(module, members, weight), options, masks(module));
            combined.put(module, each);
            ranks.put(module, each.rank(options.rank()));
        }
        LoraConfig config = CombinedConfig.of(
                sources.stream().map(AdapterSource::config).toList(), ranks, ModuleSelector.names(modules), options);
        Map<String, Tensor> results = new LinkedHashMap<>();
        combined.forEach((module, each) -> {
            LayerResult made = each.at(ranks.get(module), ScalarType.Float, config.loraBias(), config.useDora());
            Tensor b = made.b().flatten(1, -1).to(ScalarType.Double);
            Tensor a = made.a().flatten(1, -1).to(ScalarType.Double);
            results.put("delta." + module, b.matmul(a).mul(new Scalar(config.scale(module))));
            if (made.bias() != null) {
                results.put("bias." + module, made.bias());
            }
            if (made.magnitude() != null) {
                results.put("magnitude." + module, made.magnitude());
            }
            each.close();
        });
        return results;
    }

    /** What DARE draws: below every density where PEFT's mask keeps an element, above it elsewhere. */
    private Uniform masks(String module) {
        return (adapter, what, from, count, columns) -> {
            String key = "mask." + module + "." + what + "." + adapter;
            Tensor drop = torch.ones_like(expected.tensor(key)).sub(expected.tensor(key));
            return drop.to(ScalarType.Float).narrow(0, from, count);
        };
    }

    @Override
    public void close() {
        sources.forEach(AdapterSource::close);
        base.close();
        expected.close();
    }
}
