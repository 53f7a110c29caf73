package org.lora4j.combine;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.jspecify.annotations.Nullable;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.Tensors;

/**
 * What adapters keep whole, of {@code modules_to_save}. They add up as changes of the base's: {@code P + sum_i w_i (P_i -
 * P)}, for which the base is not needed where the weights add up to 1. Weights of the base that PEFT repeats in a file are
 * left out.
 */
final class WholeTensors {
    private static final double CANCELLED = 1e-9;

    private final List<AdapterSource> sources;
    private final List<Double> weights;
    private final @Nullable MappedTensors base;
    private final Map<String, List<Integer>> owners = new TreeMap<>();

    /** @throws IllegalArgumentException if the sum needs a base that is not given, or shapes differ */
    WholeTensors(List<AdapterSource> sources, List<Double> weights, @Nullable MappedTensors base) {
        this.sources = sources;
        this.weights = weights;
        this.base = base;
        for (int i = 0; i < sources.size(); i++) {
            for (String key : sources.get(i).others()) {
                if (!key.contains(".base_layer.")) {
                    owners.computeIfAbsent(key, k -> new ArrayList<>()).add(i);
                }
            }
        }
        owners.forEach(this::check);
    }

    private void check(String key, List<Integer> own) {
        AdapterSource first = sources.get(own.get(0));
        for (int i : own) {
            if (!java.util.Arrays.equals(
                    sources.get(i).tensors().info(key).shape(),
                    first.tensors().info(key).shape())) {
                throw new IllegalArgumentException(key + " is "
                        + sources.get(i).tensors().info(key) + " in "
                        + sources.get(i).name() + " and "
                        + first.tensors().info(key) + " in " + first.name() + ": combine adapters of one base");
            }
        }
        if (Math.abs(ofBase(own)) > CANCELLED && (base == null || !base.names().contains(parameter(key)))) {
            throw new IllegalArgumentException("the adapters keep " + key
                    + " whole, and a sum of its changes with weights that do not add up to 1 needs that of the base: "
                    + (base == null ? "give the base" : "the base has no " + parameter(key) + ", give another"));
        }
    }

    private double ofBase(List<Integer> own) {
        double left = 1;
        for (int i : own) {
            left -= weights.get(i);
        }
        return left;
    }

    private static String parameter(String key) {
        return key.substring(AdapterSource.PREFIX.length());
    }

    /** The sums by key, in the types of the first adapter that has each, in the current scope. */
    Map<String, Tensor> sums() {
        Map<String, Tensor> sums = new LinkedHashMap<>();
        owners.forEach((key, own) -> {
            Tensor like = sources.get(own.get(0)).tensors().tensor(key);
            Tensor sum = torch.zeros_like(like).to(ScalarType.Double);
            double ofBase = ofBase(own);
            if (base != null && Math.abs(ofBase) > CANCELLED) {
                sum.add_(base.tensor(parameter(key)).to(ScalarType.Double), new Scalar(ofBase));
            }
            for (int i : own) {
                Tensor part = sources.get(i).tensors().tensor(key).to(ScalarType.Double);
                sum.add_(part, new Scalar(weights.get(i)));
            }
            sums.put(key, sum.to(Tensors.type(like)));
        });
        return sums;
    }
}
