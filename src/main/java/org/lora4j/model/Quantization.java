package org.lora4j.model;

import java.io.IOException;
import java.util.ArrayList;
import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.LinearImpl;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.NearMisses;
import org.lora4j.layer.LoraLayer;
import org.lora4j.layer.QuantizationOptions;
import org.lora4j.layer.QuantizedLinear;
import org.lora4j.ops.FourBitWeight;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.QuantizedFiles;
import org.lora4j.ops.QuantizedWeight;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Quantizes the linear layers of a model, before adapters are added: the base of QLoRA (arXiv:2305.14314). All
 * other parameters stay as they are.
 */
public final class Quantization {
    private static final Logger LOG = LoggerFactory.getLogger(Quantization.class);
    private static final List<String> OUTPUT_LAYER = List.of("lm_head");

    private Quantization() {}

    /** Quantizes every linear layer but {@code lm_head}; see {@link #quantize(Module, QuantizationOptions, Collection)}. */
    public static Map<String, QuantizedLinear> quantize(Module root, QuantizationOptions options) {
        return quantize(root, options, OUTPUT_LAYER);
    }

    /**
     * Quantizes the linear layers of a model in place, one after the other, each releasing its full weight before the next.
     * Layers that are quantized already are left as they are. The Java objects of the layers are replaced in the fields,
     * arrays, lists and maps that hold them; those a program keeps elsewhere must not be called any more.
     *
     * @param skip layers to leave: the paths of layers or of modules around them, or the ends of paths after a dot, as in
     *     {@code llm_int8_skip_modules} of transformers
     * @return the layers by path; they belong to the caller, who closes them with the model
     * @throws IllegalArgumentException if the model has adapters, a name in {@code skip} matches nothing but {@code lm_head},
     *     or a weight is no Float, BFloat16 or Half; the layers before it are quantized then
     * @throws ArithmeticException naming the layer, if a weight holds NaN or infinity; the layers before it are quantized then
     */
    public static Map<String, QuantizedLinear> quantize(
            Module root, QuantizationOptions options, Collection<String> skip) {
        try (PointerScope scope = new PointerScope()) {
            ModuleTree tree = new ModuleTree(root);
            Map<String, LinearImpl> layers = layers(tree);
            checkSkip(tree.paths(), skip);
            Map<String, QuantizedLinear> quantized = new LinkedHashMap<>();
            layers.forEach((path, linear) -> {
                if (skip.stream().noneMatch(name -> matches(path, name))) {
                    quantized.put(path, named(path, () -> {
                        QuantizedLinear replacement = QuantizedLinear.of(linear, options);
                        tree.replace(path, replacement);
                        return replacement;
                    }));
                }
            });
            return quantized;
        }
    }

    /**
     * Puts the quantized weights of a checkpoint into a model: every layer that bitsandbytes has quantized there. Other
     * tensors of the checkpoint are not read.
     *
     * @param files the checkpoint, whose names are the model's
     * @param computeType the type to compute in, or null for the inputs'
     * @return the layers by path; they belong to the caller, who closes them with the model
     * @throws IllegalArgumentException naming the layer, if the model has no linear layer there, it is of other sizes, or
     *     its tensors do not fit; the layers before it are replaced then
     * @throws IOException if a quantization state is no JSON of bitsandbytes
     */
    public static Map<String, QuantizedLinear> load(Module root, MappedTensors files, @Nullable ScalarType computeType)
            throws IOException {
        try (PointerScope scope = new PointerScope()) {
            ModuleTree tree = new ModuleTree(root);
            Map<String, LinearImpl> layers = layers(tree);
            Set<String> stored = QuantizedFiles.layers(files.names());
            Set<String> unknown = new TreeSet<>(stored);
            unknown.removeAll(layers.keySet());
            if (!unknown.isEmpty()) {
                throw new IllegalArgumentException("the checkpoint has quantized weights for " + unknown
                        + ", where the model has no linear layer that is not quantized yet: load it into the model it was"
                        + " made from");
            }
            Map<String, QuantizedLinear> quantized = new LinkedHashMap<>();
            for (Map.Entry<String, LinearImpl> entry : layers.entrySet()) {
                String path = entry.getKey();
                if (stored.contains(path)) {
                    QuantizedWeight weight = QuantizedFiles.read(files, path);
                    quantized.put(path, named(path, () -> {
                        QuantizedLinear replacement = QuantizedLinear.of(entry.getValue(), weight, computeType);
                        tree.replace(path, replacement);
                        return replacement;
                    }));
                }
            }
            return quantized;
        }
    }

    /**
     * Puts full weights back into every quantized layer: what the quantized ones stand for. The quantized layers are closed.
     *
     * @param type the type of the weights
     * @return the paths of the layers
     * @throws IllegalArgumentException if the model has adapters
     */
    public static Set<String> dequantize(Module root, ScalarType type) {
        try (PointerScope scope = new PointerScope()) {
            ModuleTree tree = new ModuleTree(root);
            Set<String> paths = new TreeSet<>();
            checkNoAdapters(tree);
            for (String path : tree.paths()) {
                if (tree.object(path) instanceof QuantizedLinear layer) {
                    tree.replace(path, layer.toLinear(layer.dequantized(type)));
                    layer.close();
                    paths.add(path);
                }
            }
            return paths;
        }
    }

    /**
     * All parameters of a model by path, the weights of quantized layers under the names and in the form bitsandbytes
     * stores them: what to write into a checkpoint. The tensors share the model's memory.
     */
    public static Map<String, Tensor> tensors(Module root) {
        ModuleTree tree = new ModuleTree(root);
        Map<String, Tensor> tensors = new LinkedHashMap<>(Parameters.of(root));
        for (String path : tree.paths()) {
            Module module = tree.object(path);
            Module base = module instanceof LoraLayer layer ? layer.original() : module;
            if (base instanceof QuantizedLinear layer) {
                tensors.remove(path + ".weight");
                tensors.putAll(QuantizedFiles.tensors(path, layer.quantized()));
            }
        }
        return tensors;
    }

    /**
     * What transformers needs in config.json, as {@code quantization_config}, to load {@link #tensors}.
     *
     * @param type the type of the model's other weights, in which layers without a type of their own compute
     * @return the object, or null if no layer is quantized
     * @throws IllegalArgumentException if layers are quantized in several ways, which the file cannot say
     */
    public static @Nullable Map<String, @Nullable Object> config(Module root, ScalarType type) {
        ModuleTree tree = new ModuleTree(root);
        Set<Form> forms = new LinkedHashSet<>();
        List<String> plain = new ArrayList<>();
        for (String path : tree.paths()) {
            Module module = tree.object(path);
            Module base = module instanceof LoraLayer layer ? layer.original() : module;
            if (base instanceof QuantizedLinear layer) {
                forms.add(Form.of(layer, type));
            } else if (base instanceof LinearImpl) {
                plain.add(path);
            }
        }
        if (forms.size() > 1) {
            throw new IllegalArgumentException("the layers are quantized in several ways, " + forms
                    + ", and config.json can name one: write Quantization.tensors yourself, or quantize all alike");
        }
        return forms.isEmpty() ? null : forms.iterator().next().config(plain.equals(OUTPUT_LAYER) ? null : plain);
    }

    /** The ways to quantize that transformers tells apart; {@code values} is null for 8 bits. */
    private record Form(@Nullable String values, boolean nested, ScalarType compute) {
        private static final Map<ScalarType, String> NAMES =
                Map.of(ScalarType.Float, "float32", ScalarType.Half, "float16", ScalarType.BFloat16, "bfloat16");

        static Form of(QuantizedLinear layer, ScalarType type) {
            ScalarType own = layer.computeType();
            return layer.quantized() instanceof FourBitWeight four
                    ? new Form(four.values().id(), four.scales().nested() != null, own == null ? type : own)
                    : new Form(null, false, ScalarType.Float);
        }

        Map<String, @Nullable Object> config(@Nullable List<String> skip) {
            Map<String, @Nullable Object> config = new LinkedHashMap<>();
            config.put("quant_method", "bitsandbytes");
            config.put("load_in_4bit", values != null);
            config.put("load_in_8bit", values == null);
            config.put("llm_int8_skip_modules", skip);
            if (values != null) {
                config.put("bnb_4bit_quant_type", values);
                config.put("bnb_4bit_use_double_quant", nested);
                config.put("bnb_4bit_compute_dtype", NAMES.getOrDefault(compute, "float32"));
                config.put("bnb_4bit_quant_storage", "uint8");
            }
            return config;
        }
    }

    /** The linear layers that are not quantized. */
    private static Map<String, LinearImpl> layers(ModuleTree tree) {
        checkNoAdapters(tree);
        Map<String, LinearImpl> layers = new LinkedHashMap<>();
        for (String path : tree.paths()) {
            Module module = tree.object(path);
            if (module instanceof LinearImpl linear && !(module instanceof QuantizedLinear)) {
                layers.put(path, linear);
            } else if (module == null && tree.type(path).contains("LinearImpl")) {
                LOG.warn(
                        "module '{}' is called inside C++ and stays as it is: hold it in a field to quantize it", path);
            }
        }
        return layers;
    }

    private static void checkNoAdapters(ModuleTree tree) {
        List<String> adapted = tree.paths().stream()
                .filter(path -> tree.object(path) instanceof LoraLayer)
                .toList();
        if (!adapted.isEmpty()) {
            throw new IllegalArgumentException("the layers " + adapted
                    + " have adapters: unload them first, quantize the model, and add them again");
        }
    }

    private static void checkSkip(Set<String> paths, Collection<String> skip) {
        for (String name : skip) {
            if (!OUTPUT_LAYER.contains(name) && paths.stream().noneMatch(path -> matches(path, name))) {
                throw new IllegalArgumentException(
                        "skip has \"" + name + "\", which no module has; near misses: " + NearMisses.of(name, paths));
            }
        }
    }

    private static boolean matches(String path, String name) {
        return path.equals(name) || path.startsWith(name + ".") || path.endsWith("." + name);
    }

    private interface Step {
        QuantizedLinear run();
    }

    private static QuantizedLinear named(String path, Step step) {
        try {
            return step.run();
        } catch (ArithmeticException e) {
            throw (ArithmeticException) new ArithmeticException("layer '" + path + "': " + e.getMessage()).initCause(e);
        } catch (IllegalArgumentException e) {
            throw new IllegalArgumentException("layer '" + path + "': " + e.getMessage(), e);
        }
    }
}
