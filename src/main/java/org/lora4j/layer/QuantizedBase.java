package org.lora4j.layer;

import java.util.List;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.jspecify.annotations.Nullable;
import org.lora4j.ops.LowRank;
import org.lora4j.ops.QuantizedWeight;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** The quantized weight under a layer with adapters: what merging starts from and puts in its place. */
final class QuantizedBase {
    private static final Logger LOG = LoggerFactory.getLogger(QuantizedBase.class);

    private final String path;
    private final QuantizedLinear layer;
    private final ActiveAdapters active;
    /** The weight before a merge that was quantized again; null while there is none. */
    private @Nullable QuantizedWeight before;

    private @Nullable MergeReport report;

    private QuantizedBase(String path, QuantizedLinear layer, ActiveAdapters active) {
        this.path = path;
        this.layer = layer;
        this.active = active;
    }

    /** Null for a layer whose weight is not quantized. */
    static @Nullable QuantizedBase of(LoraLayer layer) {
        return layer.original() instanceof QuantizedLinear quantized
                ? new QuantizedBase(layer.path(), quantized, layer.adapters().active())
                : null;
    }

    /** What the adapters were trained on: (out, in), float32, in the caller's scope. */
    Tensor unmerged() {
        return weight().dequantize(ScalarType.Float);
    }

    private QuantizedWeight weight() {
        return before == null ? layer.quantized() : before;
    }

    /** What the adapters are merged into, float32. */
    Tensor start() {
        MergeChoice choice = choice();
        if (choice.base() != MergeBase.ORIGINAL) {
            return unmerged();
        }
        QuantizedWeight weight = weight();
        Tensor original = original(choice);
        if (original == null
                || original.dim() != 2
                || original.size(0) != weight.rows()
                || original.size(1) != weight.columns()) {
            throw new IllegalArgumentException("the original weight of layer '" + path + "' is "
                    + (original == null ? "missing" : org.lora4j.ops.Tensors.describe(original)) + " but must be ("
                    + weight.rows() + ", " + weight.columns()
                    + "): pass the weights that were quantized, or choose DEQUANTIZED");
        }
        return original.detach().to(weight.device(), ScalarType.Float);
    }

    private @Nullable Tensor original(MergeChoice choice) {
        return choice.originals().apply(path);
    }

    private MergeChoice choice() {
        MergeChoice choice = active.mergeChoice();
        if (choice == null) {
            throw new IllegalStateException(
                    "layer '" + path + "' is quantized (" + weight().description()
                            + "): say what to merge into with LoraModel.mergeInto. DEQUANTIZED gives full weights and exactly the"
                            + " model that was trained, REQUANTIZED stays small, ORIGINAL takes the weights that were quantized");
        }
        return choice;
    }

    /**
     * Puts a merged weight in place.
     *
     * @param merged (out, in) float32
     * @param adapters what was merged into {@link #start}
     */
    void put(Tensor merged, List<LoraWeights> adapters) {
        if (!torch.isfinite(merged).all().item_bool()) {
            throw new ArithmeticException("merging into layer '" + path + "' gives NaN or infinite weights: an adapter"
                    + " seems broken; check its values and scale");
        }
        MergeChoice choice = choice();
        QuantizedWeight weight = weight();
        QuantizedWeight again = choice.base() == MergeBase.REQUANTIZED ? weight.requantize(merged) : null;
        boolean measurable = adapters.stream().allMatch(LoraWeights::isPlain);
        if (measurable) {
            List<LowRank> updates = adapters.stream().map(LoraWeights::lowRank).toList();
            MergeReport found = QuantizedMerge.report(weight, updates, choice.base(), original(choice), again);
            report = found;
            if (found.errorExceedsDelta()) {
                LOG.warn("layer '{}': the error of quantization is larger than what is merged: {}", path, found);
            }
        }
        if (again == null) {
            undo();
            layer.hold(merged.to(weight.dtype()));
        } else {
            layer.hold(null);
            QuantizedWeight old = layer.exchange(again);
            if (before == null) {
                before = old;
            } else {
                old.close();
            }
        }
    }

    /** Puts the weight back as it was before the first merge, bit for bit. */
    void undo() {
        layer.hold(null);
        if (before != null) {
            layer.exchange(before).close();
            before = null;
        }
    }

    /** Makes the merged weight the base weight. */
    void keep() {
        if (before != null) {
            before.close();
            before = null;
        }
    }

    /** How large the errors of the last merge are, or null if none was measured. */
    @Nullable
    MergeReport report() {
        return report;
    }
}
