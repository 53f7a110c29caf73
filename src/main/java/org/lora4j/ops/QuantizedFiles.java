package org.lora4j.ops;

import java.io.IOException;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.format.DType;
import org.lora4j.format.QuantState;

/**
 * Quantized weights in safetensors files, under the names bitsandbytes and transformers give them.
 *
 * <p>For a layer of 4 bits: {@code weight} (the packed elements, as uint8 or seen as another type), {@code weight.absmax},
 * {@code weight.quant_map}, {@code weight.quant_state.bitsandbytes__nf4} or {@code __fp4}, and with double quantization
 * {@code weight.nested_absmax} and {@code weight.nested_quant_map}. Of 8 bits: {@code weight}, {@code SCB} and {@code
 * weight_format}. Each follows the path of the layer and a dot.
 */
public final class QuantizedFiles {
    private static final String STATE = "weight.quant_state.bitsandbytes__";
    private static final int STATE_BYTES = 1 << 16;
    private static final double MAP_TOLERANCE = 1e-6;

    /** The type names of PyTorch. */
    private static final Map<String, ScalarType> TYPES =
            Map.of("float32", ScalarType.Float, "float16", ScalarType.Half, "bfloat16", ScalarType.BFloat16);

    private QuantizedFiles() {}

    /** The paths of the layers whose weights are quantized, in ascending order. */
    public static Set<String> layers(Set<String> names) {
        Set<String> layers = new TreeSet<>();
        for (String name : names) {
            int state = name.indexOf("." + STATE);
            if (state >= 0) {
                layers.add(name.substring(0, state));
            } else if (name.endsWith(".SCB")) {
                layers.add(name.substring(0, name.length() - ".SCB".length()));
            }
        }
        return layers;
    }

    /** The names of the tensors that make up one quantized weight, among those of a file. */
    public static Set<String> names(Set<String> names, String layer) {
        Set<String> own = new TreeSet<>();
        for (String name : names) {
            String rest = name.startsWith(layer + ".") ? name.substring(layer.length() + 1) : "";
            if (rest.equals("weight")
                    || rest.startsWith("weight.")
                    || rest.equals("SCB")
                    || rest.equals("weight_format")) {
                own.add(name);
            }
        }
        return own;
    }

    /**
     * The tensors of a file with their shapes, each quantized weight as the one tensor {@code weight} of its true shape.
     *
     * @throws IOException if a quantization state is no JSON of bitsandbytes
     */
    public static Map<String, long[]> shapes(MappedTensors files) throws IOException {
        Map<String, long[]> shapes = new LinkedHashMap<>();
        files.names().forEach(name -> shapes.put(name, files.info(name).shape()));
        for (String layer : layers(files.names())) {
            try (PointerScope scope = new PointerScope()) {
                QuantizedWeight weight = read(files, layer);
                names(files.names(), layer).forEach(shapes::remove);
                shapes.put(layer + ".weight", new long[] {weight.rows(), weight.columns()});
            }
        }
        return shapes;
    }

    /**
     * Reads the weight of one layer. Its tensors may share the mapped memory.
     *
     * @param layer the path of the layer
     * @return a weight whose tensors belong to the caller's scope
     * @throws IllegalArgumentException naming the tensor, if one is missing, too many or does not fit
     * @throws IOException if the state is no JSON of bitsandbytes
     */
    public static QuantizedWeight read(MappedTensors files, String layer) throws IOException {
        Set<String> names = names(files.names(), layer);
        try (NoGradGuard noGrad = new NoGradGuard()) {
            return names.contains(layer + ".SCB") ? readInt8(files, layer, names) : readFourBit(files, layer, names);
        } catch (IllegalArgumentException e) {
            throw new IllegalArgumentException("layer '" + layer + "': " + e.getMessage(), e);
        }
    }

    private static Int8Weight readInt8(MappedTensors files, String layer, Set<String> names) {
        expect(names, layer, Set.of("weight", "SCB"), Set.of("weight_format"));
        if (names.contains(layer + ".weight_format")) {
            long format = files.tensor(layer + ".weight_format").item_long();
            if (format != 0) {
                throw new IllegalArgumentException("weight_format is " + format
                        + ", but only rows (0) can be read: save the model with bitsandbytes 0.45 or newer");
            }
        }
        return new Int8Weight(files.tensor(layer + ".weight"), files.tensor(layer + ".SCB"), ScalarType.Half);
    }

    private static FourBitWeight readFourBit(MappedTensors files, String layer, Set<String> names) throws IOException {
        List<String> states = names.stream()
                .filter(name -> name.startsWith(layer + "." + STATE))
                .toList();
        if (states.size() != 1) {
            throw new IllegalArgumentException("has the tensors " + names + ", of which exactly one must be " + STATE
                    + "nf4 or fp4: this weight is not one that bitsandbytes has quantized");
        }
        QuantState state = QuantState.parse(bytes(files, states.get(0)), states.get(0));
        FourBit values = FourBit.of(state.type());
        QuantState.Nested nested = state.nested();
        Set<String> wanted = new TreeSet<>(List.of("weight", "weight.absmax", "weight.quant_map", STATE + values.id()));
        if (nested != null) {
            wanted.addAll(List.of("weight.nested_absmax", "weight.nested_quant_map"));
        }
        expect(names, layer, wanted, Set.of());
        checkMap(values, files.tensor(layer + ".weight.quant_map"));
        ScalarType type = TYPES.get(state.dtype());
        if (type == null || state.shape().size() != 2) {
            throw new IllegalArgumentException("the weight was " + state.dtype() + state.shape()
                    + ", but only matrices of " + new TreeSet<>(TYPES.keySet()) + " can be read");
        }
        Tensor packed = files.tensor(layer + ".weight");
        if (files.info(layer + ".weight").dtype() != DType.U8) {
            packed = packed.contiguous().view(ScalarType.Byte);
        }
        Tensor absmax = files.tensor(layer + ".weight.absmax");
        BlockScales scales;
        if (nested == null) {
            scales = new BlockScales(absmax.to(ScalarType.Float), null);
        } else {
            Tensor nestedScales = files.tensor(layer + ".weight.nested_absmax");
            Tensor map = files.tensor(layer + ".weight.nested_quant_map");
            scales = new BlockScales(
                    absmax, new BlockScales.Nested(nestedScales, map, nested.offset(), nested.blockSize()));
        }
        return new FourBitWeight(
                values,
                packed.reshape(-1, 1),
                scales,
                state.blockSize(),
                state.shape().get(0),
                state.shape().get(1),
                type);
    }

    private static void expect(Set<String> names, String layer, Set<String> wanted, Set<String> allowed) {
        Set<String> missing = new TreeSet<>();
        wanted.forEach(name -> missing.add(layer + "." + name));
        missing.removeAll(names);
        Set<String> unexpected = new TreeSet<>(names);
        wanted.forEach(name -> unexpected.remove(layer + "." + name));
        allowed.forEach(name -> unexpected.remove(layer + "." + name));
        if (!missing.isEmpty() || !unexpected.isEmpty()) {
            throw new IllegalArgumentException("the tensors " + missing + " are missing and " + unexpected
                    + " unexpected: take all tensors of one weight");
        }
    }

    /** Values other than those of the named set would be read as something else, here as in bitsandbytes. */
    private static void checkMap(FourBit values, Tensor map) {
        float[] expected = values.codeValues();
        boolean same = Tensors.type(map) == ScalarType.Float && map.numel() == expected.length;
        if (same) {
            float[] found = new float[expected.length];
            new FloatPointer(map.contiguous().data_ptr()).get(found);
            for (int i = 0; i < found.length; i++) {
                same &= Math.abs(found[i] - expected[i]) <= MAP_TOLERANCE;
            }
        }
        if (!same) {
            throw new IllegalArgumentException("quant_map " + Tensors.describe(map) + " does not hold the 16 values of "
                    + values.id() + ": the weight was made with other values, which bitsandbytes does not read either");
        }
    }

    private static byte[] bytes(MappedTensors files, String name) {
        Tensor tensor = files.tensor(name);
        if (Tensors.type(tensor) != ScalarType.Byte || tensor.numel() > STATE_BYTES) {
            throw new IllegalArgumentException(
                    name + " must be bytes of JSON, at most " + STATE_BYTES + ", but is " + Tensors.describe(tensor));
        }
        byte[] bytes = new byte[(int) tensor.numel()];
        if (bytes.length > 0) {
            new BytePointer(tensor.data_ptr()).get(bytes);
        }
        return bytes;
    }

    /**
     * The tensors to write for the weight of a layer, by name, as bitsandbytes names and types them. They share the
     * weight's memory, except the small ones, which belong to the caller's scope.
     */
    public static Map<String, Tensor> tensors(String layer, QuantizedWeight weight) {
        Map<String, Tensor> tensors = new LinkedHashMap<>();
        tensors.put(layer + ".weight", weight.packed());
        if (weight instanceof Int8Weight int8) {
            tensors.put(layer + ".SCB", int8.scales());
            tensors.put(layer + ".weight_format", zero());
        } else if (weight instanceof FourBitWeight four) {
            BlockScales.Nested nested = four.scales().nested();
            tensors.put(layer + ".weight.absmax", four.scales().values());
            tensors.put(layer + ".weight.quant_map", four.values().map());
            if (nested != null) {
                tensors.put(layer + ".weight.nested_absmax", nested.scales());
                tensors.put(layer + ".weight.nested_quant_map", nested.map());
            }
            tensors.put(
                    layer + "." + STATE + four.values().id(),
                    torch.tensor(state(four).json()).view(ScalarType.Byte));
        }
        return tensors;
    }

    private static QuantState state(FourBitWeight weight) {
        BlockScales.Nested nested = weight.scales().nested();
        return new QuantState(
                weight.values().id(),
                weight.blockSize(),
                typeName(weight.dtype()),
                List.of(weight.rows(), weight.columns()),
                nested == null ? null : new QuantState.Nested(nested.blockSize(), "float32", nested.offset()));
    }

    private static String typeName(ScalarType type) {
        return TYPES.entrySet().stream()
                .filter(entry -> entry.getValue() == type)
                .map(Map.Entry::getKey)
                .findFirst()
                .orElseThrow();
    }

    private static Tensor zero() {
        try (TensorOptions bytes = new TensorOptions(ScalarType.Byte)) {
            return torch.zeros(new long[0], bytes);
        }
    }
}
