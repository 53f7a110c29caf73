package org.lora4j.layer;

import java.util.ArrayList;
import java.util.List;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.AutoGradMode;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorBase;
import org.bytedeco.pytorch.VoidTensorHook;
import org.bytedeco.pytorch.global.torch;
import org.jspecify.annotations.Nullable;
import org.lora4j.ops.LowRank;
import org.lora4j.ops.Ops;
import org.lora4j.ops.Tensors;

/**
 * A parameter of any module, with adapters: a matrix (out, in), or the stacked matrices of experts (E, out, in), or (E, in,
 * out) in a {@link StackedExperts} that is transposed. PEFT's {@code lora.ParamWrapper}, for {@code target_parameters}.
 *
 * <p>Of a stack A has the shape (r E, in), the rows of one expert together, and B (out, r E), the columns of one rank
 * together: expert e of A's (E, r, in) and of B's (out, r, E) gives the update {@code s B_e A_e} of its matrix.
 *
 * <p>The module's forward stays as it is. While adapters are active, the parameter itself holds {@code W + sum_i s_i B_i
 * A_i}, added in float32 or wider and rounded once to the parameter's type, and the base data lies beside it. If the
 * adapters train, the parameter also leads a backward pass back here: from the gradient G of the adapted matrix come
 * {@code s B^T G} for A and {@code s G A^T} for B, added to what their {@code grad} holds. So:
 *
 * <ul>
 *   <li>After A or B has changed, as by a step of an optimizer, {@link #refresh} must run before the next forward pass;
 *       {@code Trainer} does it. A backward pass through values that are out of date throws.
 *   <li>Gradients come with {@code backward()}. {@code torch.autograd.grad} does not reach A and B, nor do second
 *       derivatives.
 *   <li>The module must use the registered parameter, not a copy or a transposed clone of it that it made before.
 *   <li>All rows of a batch share the parameter, so they cannot have adapters of their own.
 *   <li>Memory: a second copy of the parameter while adapters are active, as merging needs, too.
 * </ul>
 */
public final class LoraParameter implements LoraLayer {
    private static final Scalar ONE = Tensors.keep(new Scalar(1.0));

    /** An adapter in the parameter's value, with copies of its factors as they were then: optimizers change them unseen. */
    private record Added(LoraWeights weights, double scale, Tensor a, Tensor b) implements AutoCloseable {
        static Added of(LoraWeights weights) {
            return new Added(weights, weights.scale(), copy(weights.a()), copy(weights.b()));
        }

        private static Tensor copy(Tensor factor) {
            return Tensors.keep(factor.detach().clone());
        }

        boolean isCurrent() {
            try (PointerScope scope = new PointerScope()) {
                return scale == weights.scale() && bits(a).equal(bits(weights.a())) && bits(b).equal(bits(weights.b()));
            }
        }

        /** The numbers as integers, so that NaN equals itself. */
        private static Tensor bits(Tensor factor) {
            boolean wide = Tensors.type(factor) == torch.ScalarType.Double;
            return factor.detach().view(wide ? torch.ScalarType.Long : torch.ScalarType.Int);
        }

        @Override
        public void close() {
            a.close();
            b.close();
        }
    }

    private final Module module;
    private final String modulePath;
    private final Tensor parameter;
    private final boolean transposed;
    private final int wrappersAround;
    private final LayerAdapters adapters;
    /** What leads backward passes here. */
    private final Hook hook = Tensors.keep(new Hook());
    /** What the value of the parameter depends on while its adapters train: adding it makes the parameter no leaf. */
    private final Tensor zero;
    /** The data without the adapters in use, while these are part of the parameter; else null. */
    private @Nullable Tensor base;

    private volatile List<Added> added = List.of();

    /**
     * @param module the module that holds the parameter
     * @param modulePath the module's dotted path
     * @param name the parameter's name in the module
     * @param parameter the registered tensor
     * @param wrappersAround the number of adapted parameters of the same module that come after it: PEFT's file keeps its
     *     factors below that many {@code base_layer}s
     * @throws IllegalArgumentException if it has neither two nor three dimensions, is no floating-point tensor of 16 bits
     *     or more, or is a view of another tensor
     */
    public LoraParameter(
            Module module,
            String modulePath,
            String name,
            Tensor parameter,
            int wrappersAround,
            ActiveAdapters active) {
        this.module = module;
        this.modulePath = modulePath;
        this.wrappersAround = wrappersAround;
        this.adapters = new LayerAdapters(modulePath + "." + name, active);
        check(parameter);
        this.transposed = parameter.dim() == 3 && module instanceof StackedExperts experts && experts.isTransposed();
        this.parameter = Tensors.keep(new Tensor(parameter));
        this.zero = Tensors.keep(parameter.detach().new_zeros(new long[0]));
        zero.set_requires_grad(true);
    }

    private void check(Tensor tensor) {
        String what = "parameter '" + path() + "' is " + Tensors.describe(tensor);
        if (tensor.dim() != 2 && tensor.dim() != 3) {
            throw new IllegalArgumentException(
                    what
                            + ", but only matrices (out, in) and stacks of them (experts, out, in) take an adapter: leave it out of targetParameters");
        }
        torch.ScalarType type = Tensors.type(tensor);
        if (type != torch.ScalarType.Float
                && type != torch.ScalarType.Double
                && type != torch.ScalarType.Half
                && type != torch.ScalarType.BFloat16) {
            throw new IllegalArgumentException(what
                    + ", but an adapter is added to float32, float64, float16 or bfloat16: convert the model first");
        }
        if (tensor.is_view()) {
            throw new IllegalArgumentException(
                    what + ", a view of another tensor, whose other parts must not change: register a clone of it");
        }
    }

    /** The dotted path of the module that holds the parameter. */
    public String modulePath() {
        return modulePath;
    }

    /** The number of adapted parameters of the same module that come after it; see the constructor. */
    public int wrappersAround() {
        return wrappersAround;
    }

    /** The module that holds the parameter, for which this layer does not stand in. */
    @Override
    public Module original() {
        return module;
    }

    @Override
    public String type() {
        return "lora.ParamWrapper";
    }

    /** The parameter, with the adapters in use. */
    @Override
    public Tensor weight() {
        return parameter;
    }

    @Override
    public @Nullable Tensor bias() {
        return null;
    }

    @Override
    public long outputs() {
        return parameter.size(transposed ? -1 : -2);
    }

    private long inputs() {
        return parameter.size(transposed ? -2 : -1);
    }

    private long experts() {
        return parameter.dim() == 3 ? parameter.size(0) : 1;
    }

    @Override
    public LayerAdapters adapters() {
        return adapters;
    }

    /** The parameter is nobody's output: its module goes on computing with it. */
    @Override
    public boolean isPart() {
        return true;
    }

    @Override
    public boolean isMatrix() {
        return false;
    }

    /** The parameter itself, since a stack is no single matrix. */
    @Override
    public Tensor matrix(Tensor weight) {
        return weight;
    }

    @Override
    public String filePath() {
        return modulePath + ".base_layer".repeat(wrappersAround);
    }

    @Override
    public long[] shapeA(int rank) {
        return new long[] {rank * experts(), inputs()};
    }

    @Override
    public long[] shapeB(int rank) {
        return new long[] {outputs(), rank * experts()};
    }

    /** @throws UnsupportedOperationException always: the module computes outputs */
    @Override
    public Tensor base(Tensor x) {
        throw new UnsupportedOperationException("parameter '" + path() + "' has no output of its own");
    }

    /** @throws UnsupportedOperationException always: the module computes outputs */
    @Override
    public Tensor delta(LoraWeights weights, Tensor x) {
        return base(x);
    }

    /** {@code s B A} in the shape of the parameter. */
    @Override
    public Tensor update(LoraWeights weights) {
        Tensor update = left(weights).matmul(right(weights)).mul(weights.scaleScalar());
        return parameter.dim() == 3 ? update : update.squeeze(0);
    }

    @Override
    public boolean add(Tensor weight, Tensor from, List<LoraWeights> updates, boolean safe) {
        Tensor stack = stack(weight);
        Tensor source = stack(from);
        if (Tensors.type(weight) == torch.ScalarType.Double) {
            stack.copy_(source);
            for (LoraWeights each : updates) {
                stack.baddbmm_(left(each), right(each), ONE, each.scaleScalar());
            }
            return !safe || Merging.isFinite(weight);
        }
        boolean finite = true;
        for (long e = 0; e < stack.size(0); e++) {
            try (PointerScope scope = new PointerScope()) {
                List<LowRank> table = new ArrayList<>();
                for (LoraWeights each : updates) {
                    table.add(new LowRank(right(each).select(0, e), left(each).select(0, e), each.scale()));
                }
                if (safe) {
                    finite &= Ops.current().mergeChecked(stack.select(0, e), source.select(0, e), table);
                } else {
                    Ops.current().merge(stack.select(0, e), source.select(0, e), table);
                }
            }
        }
        return finite;
    }

    private static Tensor stack(Tensor parameter) {
        return parameter.dim() == 3 ? parameter : parameter.unsqueeze(0);
    }

    /** The factor to the left of the update as the parameter lies: B as (E, out, r), or transposed A as (E, in, r). */
    private Tensor left(LoraWeights weights) {
        return transposed ? stackedA(weights).transpose(1, 2) : stackedB(weights);
    }

    /** The factor to the right: A as (E, r, in), or transposed B as (E, r, out). */
    private Tensor right(LoraWeights weights) {
        return transposed ? stackedB(weights).transpose(1, 2) : stackedA(weights);
    }

    private Tensor stackedA(LoraWeights weights) {
        return weights.a().detach().view(experts(), weights.rank(), inputs());
    }

    private Tensor stackedB(LoraWeights weights) {
        return weights.b().detach().view(outputs(), weights.rank(), experts()).permute(2, 0, 1);
    }

    @Override
    public void refresh() {
        List<LoraWeights> inUse = adapters.inUse();
        if (inUse.isEmpty()) {
            suspend();
            return;
        }
        if (!isCurrent(inUse)) {
            try (PointerScope scope = new PointerScope();
                    NoGradGuard noGrad = new NoGradGuard()) {
                if (base == null) {
                    base = Tensors.keep(parameter.detach());
                    parameter.set_data(base.new_empty(Tensors.shape(base)));
                }
                add(parameter.detach(), base, inUse, false);
            }
            remember(inUse);
            inUse.forEach(each -> each.onNewScale(this::refresh));
        }
        boolean trains = inUse.stream()
                .anyMatch(each -> each.a().requires_grad() || each.b().requires_grad());
        track(trains);
        if (trains) {
            adapters.taken().note(TrainingPath.Kind.AUTOGRAD, "its module multiplies by the adapted parameter itself");
        }
    }

    private boolean isCurrent(List<LoraWeights> inUse) {
        return base != null
                && inUse.equals(added.stream().map(Added::weights).toList())
                && added.stream().allMatch(Added::isCurrent);
    }

    @Override
    public void suspend() {
        if (base != null) {
            track(false);
            parameter.set_data(base);
            base.close();
            base = null;
            remember(List.of());
        }
    }

    private void remember(List<LoraWeights> inUse) {
        List<Added> before = added;
        added = inUse.stream().map(Added::of).toList();
        before.forEach(Added::close);
    }

    /** Makes backward passes come here or not. Those of forward passes before are not affected. */
    private void track(boolean gradients) {
        if (parameter.requires_grad() == gradients) {
            return;
        }
        if (gradients) {
            try (PointerScope scope = new PointerScope();
                    AutoGradMode recording = new AutoGradMode(true)) {
                parameter.add_(zero);
            }
            parameter.register_hook(hook);
        } else {
            parameter.detach_();
        }
    }

    @Override
    public void merge(List<String> names, boolean safe) {
        suspend();
        try {
            LoraLayer.super.merge(names, safe);
        } finally {
            refresh();
        }
    }

    @Override
    public void unmerge() {
        if (!adapters.merged().isEmpty()) {
            suspend();
            LoraLayer.super.unmerge();
            refresh();
        }
    }

    /** Takes the gradient of the parameter as it is used. */
    private final class Hook extends VoidTensorHook {
        @Override
        public void call(TensorBase gradient) {
            try (PointerScope scope = new PointerScope();
                    NoGradGuard noGrad = new NoGradGuard()) {
                backward(new Tensor(gradient));
            }
        }
    }

    private void backward(Tensor gradient) {
        for (Added each : added) {
            LoraWeights weights = each.weights();
            if (!each.isCurrent()) {
                throw new IllegalStateException("the factors of '" + path()
                        + "' changed after its value was computed, so this gradient would be of other factors: call"
                        + " LoraModel.refresh() after every step of the optimizer");
            }
            Tensor stack = gradient.dim() == 3 ? gradient : gradient.unsqueeze(0);
            Tensor scaled = stack.to(Tensors.type(weights.a())).mul(weights.scaleScalar());
            Tensor left = scaled.matmul(right(weights).transpose(1, 2));
            Tensor right = left(weights).transpose(1, 2).matmul(scaled);
            Tensor a = transposed ? left.transpose(1, 2) : right;
            Tensor b = transposed ? right.transpose(1, 2) : left;
            accumulate(weights.a(), a);
            accumulate(weights.b(), b.permute(1, 2, 0));
        }
    }

    private static void accumulate(Tensor factor, Tensor gradient) {
        if (factor.requires_grad()) {
            Tensor shaped = gradient.reshape(Tensors.shape(factor));
            if (factor.grad().defined()) {
                factor.mutable_grad().add_(shaped);
            } else {
                // No view, since optimizers detach gradients in place.
                factor.mutable_grad().put(shaped.clone());
            }
        }
    }
}
