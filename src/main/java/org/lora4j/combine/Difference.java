package org.lora4j.combine;

import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.ops.Tensors;

/** What was added to a weight, in float32, or float64 where one of the two is; read as tiles are asked for. */
final class Difference implements Tiles {
    private final Tensor before;
    private final Tensor after;
    private final ScalarType type;

    /** @param before a matrix, of the shape of the other */
    Difference(Tensor before, Tensor after) {
        this.before = before;
        this.after = after;
        boolean wide = Tensors.type(before) == ScalarType.Double || Tensors.type(after) == ScalarType.Double;
        this.type = wide ? ScalarType.Double : ScalarType.Float;
    }

    @Override
    public long rows() {
        return before.size(0);
    }

    @Override
    public long columns() {
        return before.size(1);
    }

    @Override
    public TensorOptions options() {
        return new TensorOptions(type);
    }

    @Override
    public Tensor tile(long from, long count) {
        return after.narrow(0, from, count)
                .to(type)
                .sub(before.narrow(0, from, count).to(type));
    }
}
