package org.lora4j.format;

import java.io.IOException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.EnumMap;
import java.util.List;
import java.util.Map;
import java.util.OptionalDouble;
import java.util.stream.Collectors;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.LoraKey.Role;

/** The tensors of one adapted module, gathered from a file and checked against each other. */
final class ForeignModule {
    final String part;
    final String module;
    final Map<Role, TensorInfo> tensors = new EnumMap<>(Role.class);
    String path = "";
    int rank;
    double alpha;

    ForeignModule(String part, String module) {
        this.part = part;
        this.module = module;
    }

    /** The names of all its tensors, for a message. */
    String keys() {
        return tensors.values().stream().map(TensorInfo::name).sorted().collect(Collectors.joining(", "));
    }

    /** Reads rank and alpha; what does not fit is added to the problems. */
    void check(TensorFile file, List<String> problems) throws IOException {
        TensorInfo a = tensors.get(Role.A);
        TensorInfo b = tensors.get(Role.B);
        if (a == null || b == null) {
            problems.add(keys() + " without the other factor of the module");
            return;
        }
        if (tensors.containsKey(Role.MIDDLE)) {
            problems.add(name(Role.MIDDLE) + " is a third factor, which PEFT's LoRA lacks; merge it into lora_down");
        }
        long[] down = a.shape();
        long[] up = b.shape();
        boolean fits = down.length >= 2 && down.length == up.length && down[0] >= 1 && up[1] >= 1;
        fits = fits && down[0] <= Integer.MAX_VALUE && (down.length == 2 ? down[0] == up[1] : down[0] % up[1] == 0);
        if (!fits) {
            problems.add(a + " and " + b + " are no two factors of one rank");
            return;
        }
        rank = (int) down[0];
        alpha = rank;
        if (tensors.containsKey(Role.ALPHA)) {
            TensorInfo info = tensors.get(Role.ALPHA);
            OptionalDouble value = Arrays.stream(info.shape()).allMatch(size -> size == 1)
                    ? Scalars.decode(info.dtype(), file.read(info.name()))
                    : OptionalDouble.empty();
            if (value.isEmpty() || !Double.isFinite(value.getAsDouble())) {
                problems.add(info + " is no single finite number");
            }
            alpha = value.orElse(rank);
        }
        if (tensors.containsKey(Role.MAGNITUDE) && magnitudeShape() == null) {
            problems.add(tensors.get(Role.MAGNITUDE) + " has no magnitude for each of the " + up[0]
                    + " outputs, the only kind PEFT's DoRA has");
        }
    }

    private String name(Role role) {
        TensorInfo info = tensors.get(role);
        return info == null ? "" : info.name();
    }

    /** The shape PEFT gives the magnitudes: (out), or (1, out, 1...) for a convolution; null if they are no such. */
    private long @Nullable [] magnitudeShape() {
        TensorInfo magnitude = tensors.get(Role.MAGNITUDE);
        TensorInfo b = tensors.get(Role.B);
        if (magnitude == null || b == null) {
            return null;
        }
        long[] given = magnitude.shape();
        long outputs = b.shape()[0];
        int dimensions = b.shape().length;
        long[] peft = peftMagnitude(outputs, dimensions);
        boolean same = Arrays.equals(given, new long[] {outputs})
                || Arrays.equals(given, foreignMagnitude(outputs, dimensions))
                || Arrays.equals(given, peft);
        return same ? peft : null;
    }

    /** PEFT's shape of the magnitudes of a module whose factors have so many dimensions. */
    static long[] peftMagnitude(long outputs, int dimensions) {
        if (dimensions == 2) {
            return new long[] {outputs};
        }
        long[] shape = ones(dimensions);
        shape[1] = outputs;
        return shape;
    }

    /** The shape that kohya's layout has: as many dimensions as the weight, the outputs first. */
    static long[] foreignMagnitude(long outputs, int dimensions) {
        long[] shape = ones(dimensions);
        shape[0] = outputs;
        return shape;
    }

    private static long[] ones(int count) {
        long[] ones = new long[count];
        Arrays.fill(ones, 1);
        return ones;
    }

    /** Its tensors by PEFT's keys. */
    Map<String, ForeignAdapter.Origin> origins() {
        Map<String, ForeignAdapter.Origin> origins = new java.util.LinkedHashMap<>();
        for (Role role : List.of(Role.A, Role.B, Role.B_BIAS, Role.MAGNITUDE)) {
            TensorInfo info = tensors.get(role);
            if (info != null) {
                long[] magnitude = role == Role.MAGNITUDE ? magnitudeShape() : null;
                long[] shape = magnitude == null ? info.shape() : magnitude;
                String key = PeftKeys.PREFIX + path + PeftKeys.suffix(role);
                origins.put(key, new ForeignAdapter.Origin(info.name(), info.dtype(), shape));
            }
        }
        return origins;
    }

    static List<String> lacking(List<ForeignModule> modules, Role role) {
        List<String> without = new ArrayList<>();
        for (ForeignModule module : modules) {
            if (!module.tensors.containsKey(role)) {
                without.add(module.path);
            }
        }
        return without;
    }
}
