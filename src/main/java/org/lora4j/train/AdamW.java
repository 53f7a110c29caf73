package org.lora4j.train;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.ops.Tensors;

/**
 * AdamW (arXiv:1711.05101) over all parameters of an adapter at once: gradients and moments lie in one buffer for each
 * group, so a step is a few operations, not a few for each of hundreds of factors.
 *
 * <p>While it lives, the gradients of the parameters are views of the buffer: {@link #zero} clears them, and
 * {@code mutable_grad().reset()} on a parameter would disconnect it.
 */
final class AdamW implements AutoCloseable {
    private static final double BETA1 = 0.9;
    private static final double BETA2 = 0.999;
    private static final double EPSILON = 1e-8;

    private final List<Flat> flats = new ArrayList<>();
    private final double weightDecay;
    private long steps;

    /** Parameters of one group and type. */
    private static final class Flat {
        final ParameterGroup group;
        final List<Tensor> parameters;
        final Tensor gradients;
        final Moments moments;

        Flat(ParameterGroup group, List<Tensor> parameters, boolean eightBit) {
            this.group = group;
            this.parameters = parameters;
            long size = parameters.stream().mapToLong(Tensor::numel).sum();
            this.gradients = Tensors.keep(parameters.get(0).detach().new_zeros(size));
            this.moments = Moments.of(size, eightBit, gradients);
            long at = 0;
            for (Tensor each : parameters) {
                each.mutable_grad().put(gradients.narrow(0, at, each.numel()).view(Tensors.shape(each)));
                at += each.numel();
            }
        }
    }

    AdamW(List<ParameterGroup> groups, double weightDecay, boolean eightBit) {
        this.weightDecay = weightDecay;
        try (PointerScope scope = new PointerScope();
                NoGradGuard noGrad = new NoGradGuard()) {
            for (ParameterGroup group : groups) {
                Map<ScalarType, List<Tensor>> byType = new LinkedHashMap<>();
                group.parameters()
                        .forEach(each -> byType.computeIfAbsent(Tensors.type(each), type -> new ArrayList<>())
                                .add(each));
                byType.values().forEach(same -> flats.add(new Flat(group, same, eightBit)));
            }
        }
    }

    void zero() {
        flats.forEach(flat -> flat.gradients.zero_());
    }

    /** The buffers all gradients lie in. */
    List<Tensor> gradients() {
        return flats.stream().map(flat -> flat.gradients).toList();
    }

    /** The norm of all gradients; scales them down to {@code largest} if it is larger. */
    double clip(double largest) {
        double squares = 0;
        for (Flat flat : flats) {
            double norm = flat.gradients.to(ScalarType.Float).norm().item_double();
            squares += norm * norm;
        }
        double norm = Math.sqrt(squares);
        if (norm > largest) {
            Scalar factor = new Scalar(largest / (norm + 1e-6));
            flats.forEach(flat -> flat.gradients.mul_(factor));
        }
        return norm;
    }

    /** One step with the gradients as they are. */
    void step(double learningRate) {
        steps++;
        double correction1 = 1 - Math.pow(BETA1, steps);
        double correction2 = Math.sqrt(1 - Math.pow(BETA2, steps));
        try (PointerScope scope = new PointerScope();
                NoGradGuard noGrad = new NoGradGuard()) {
            for (Flat flat : flats) {
                double rate = learningRate * flat.group.rate();
                Tensor update = torch.empty_like(flat.gradients).to(ScalarType.Float);
                flat.moments.update((from, count, part) -> {
                    Tensor gradient = flat.gradients.narrow(0, from, count).to(ScalarType.Float);
                    part.mean().lerp_(gradient, new Scalar(1 - BETA1));
                    part.square().mul_(new Scalar(BETA2)).addcmul_(gradient, gradient, new Scalar(1 - BETA2));
                    Tensor root =
                            part.square().sqrt().div_(new Scalar(correction2)).add_(new Scalar(EPSILON));
                    update.narrow(0, from, count).copy_(torch.div(part.mean(), root));
                });
                apply(flat, update, rate / correction1, flat.group.decays() ? 1 - rate * weightDecay : 1);
            }
        }
    }

    private static void apply(Flat flat, Tensor update, double rate, double decay) {
        long at = 0;
        Scalar step = new Scalar(-rate);
        Scalar keep = new Scalar(decay);
        for (Tensor each : flat.parameters) {
            Tensor own = update.narrow(0, at, each.numel()).view(Tensors.shape(each));
            if (decay != 1) {
                each.mul_(keep);
            }
            each.add_(own, step);
            at += each.numel();
        }
    }

    long steps() {
        return steps;
    }

    /** Parameters and moments by name. */
    Map<String, Tensor> state() {
        Map<String, Tensor> state = new LinkedHashMap<>();
        for (int i = 0; i < flats.size(); i++) {
            Flat flat = flats.get(i);
            for (int k = 0; k < flat.parameters.size(); k++) {
                state.put("group" + i + ".parameter" + k, flat.parameters.get(k).detach());
            }
            int group = i;
            flat.moments.state().forEach((name, value) -> state.put("group" + group + "." + name, value));
        }
        return state;
    }

    /**
     * Takes over a saved state.
     *
     * @throws IllegalArgumentException naming the tensor, if the state is of other parameters or options
     */
    void restore(Map<String, Tensor> saved, long takenSteps) {
        Map<String, Tensor> own = state();
        if (!own.keySet().equals(saved.keySet())) {
            throw new IllegalArgumentException(
                    "the checkpoint's optimizer state has " + saved.size() + " tensors, this run " + own.size()
                            + ": resume with the adapter and optimizer options it was made with");
        }
        try (PointerScope scope = new PointerScope();
                NoGradGuard noGrad = new NoGradGuard()) {
            own.forEach((name, value) -> {
                Tensor from = saved.get(name);
                if (from == null || !Tensors.describe(from).equals(Tensors.describe(value))) {
                    throw new IllegalArgumentException("the checkpoint's " + name + " is "
                            + (from == null ? "missing" : Tensors.describe(from)) + ", this run has "
                            + Tensors.describe(value) + ": resume with the adapter it was made with");
                }
                value.copy_(from);
            });
        }
        steps = takenSteps;
    }

    @Override
    public void close() {
        for (Flat flat : flats) {
            flat.parameters.forEach(each -> each.mutable_grad().reset());
            flat.gradients.close();
            flat.moments.close();
        }
    }
}
