package org.lora4j.ops;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.List;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.junit.jupiter.api.Test;

class TorchOpsTest {
    private final LoraOps ops = Ops.named("torch");

    @Test
    void mergesIntoALeafThatNeedsGradients() {
        Tensor weight = torch.tensor(1f, 2f, 3f, 4f, 5f, 6f)
                .reshape(2, 3)
                .requires_grad_(true)
                .detach();
        weight.requires_grad_(true);
        Tensor a = torch.tensor(1f, -1f, 2f).reshape(1, 3);
        Tensor b = torch.tensor(2f, 3f).reshape(2, 1);

        ops.merge(weight, List.of(new LowRank(a, b, 0.5)));

        float[] values = new float[6];
        weight.data_ptr_float().get(values);
        assertThat(values).containsExactly(2f, 1f, 5f, 5.5f, 3.5f, 9f);
        assertThat(weight.requires_grad()).isTrue();
    }

    @Test
    void updatesOnlyTheRowsOfAnAdapter() {
        Tensor y = torch.tensor(1f, 1f, 1f, 1f, 1f, 1f).reshape(3, 2);
        Tensor x = torch.tensor(1f, 2f, 3f).reshape(3, 1);
        LowRank first =
                new LowRank(torch.tensor(2f).reshape(1, 1), torch.tensor(1f, 3f).reshape(2, 1), 0.5);
        LowRank second = new LowRank(
                torch.tensor(1f, 1f).reshape(2, 1), torch.tensor(1f, 0f, 0f, 2f).reshape(2, 2), 3);

        ops.lowRankUpdate(y, x, new int[] {0, -1, 1}, List.of(first, second));

        float[] values = new float[6];
        y.data_ptr_float().get(values);
        assertThat(values).containsExactly(2f, 4f, 1f, 1f, 10f, 19f);
    }
}
