package org.lora4j.ops;

import java.util.List;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.BoolOptional;
import org.bytedeco.pytorch.Device;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;

/** {@link LoraOps#combine} in LibTorch operations: the reference. */
final class TorchCombine {
    private static final long LOW_WORD = 0xffffffffL;

    private TorchCombine() {}

    static void combine(Tensor y, List<TaskTensor> tensors, SignElection election) {
        CombineChecks.check(y, tensors);
        if (y.numel() == 0) {
            return;
        }
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            List<Tensor> pruned = tensors.stream()
                    .map(each ->
                            pruned(each.tensor().detach().to(ScalarType.Float).reshape(-1), each.pruning()))
                    .toList();
            Scalar zero = new Scalar(0.0);
            Tensor positive = election == SignElection.NONE
                    ? new Tensor()
                    : votes(pruned, election).ge(zero);
            Tensor sum = torch.zeros_like(pruned.get(0));
            Tensor number = torch.zeros_like(sum);
            for (int i = 0; i < pruned.size(); i++) {
                Tensor term = pruned.get(i).mul(new Scalar(tensors.get(i).weight()));
                if (election != SignElection.NONE) {
                    Tensor agreed = torch.where(
                                    positive,
                                    pruned.get(i).gt(zero),
                                    pruned.get(i).lt(zero))
                            .to(ScalarType.Float);
                    term = term.mul(agreed);
                    number = number.add(agreed);
                }
                sum = sum.add(term);
            }
            if (election != SignElection.NONE) {
                sum = sum.div(number.clamp_min(new Scalar(1.0)));
            }
            y.copy_(sum.view_as(y));
        }
    }

    private static Tensor votes(List<Tensor> tensors, SignElection election) {
        Tensor votes = torch.zeros_like(tensors.get(0));
        for (Tensor tensor : tensors) {
            votes = votes.add(election == SignElection.TOTAL ? tensor : tensor.sign());
        }
        return votes;
    }

    private static Tensor pruned(Tensor flat, Pruning pruning) {
        if (pruning instanceof Pruning.Magnitude magnitude) {
            Tensor order = flat.abs().sort(new BoolOptional(true), 0, true).get1();
            Tensor kept = order.narrow(0, 0, magnitude.kept(flat.numel()));
            Tensor mask = torch.zeros_like(flat).to(ScalarType.Bool).index_fill_(0, kept, new Scalar(1));
            return torch.where(mask, flat, torch.zeros_like(flat));
        }
        if (pruning instanceof Pruning.Random random) {
            long below = (long) (random.density() * 0x1p32);
            Tensor mask = words(random.seed(), random.stream(), flat.numel(), flat.device())
                    .lt(new Scalar(below));
            Tensor values = random.rescale() && below > 0 ? flat.div(new Scalar(random.density())) : flat;
            return torch.where(mask, values, torch.zeros_like(flat));
        }
        return flat;
    }

    /** The words of Philox 4x32-10 for elements 0, 1, ...: int64 (count), in 64-bit arithmetic that wraps around. */
    static Tensor words(long seed, long stream, long count, Device device) {
        Tensor block = torch.arange(new Scalar((count + 3) / 4)).to(device, ScalarType.Long);
        Tensor[] c = {
            low(block),
            high(block),
            torch.full_like(block, new Scalar(stream & LOW_WORD)),
            torch.full_like(block, new Scalar(stream >>> 32))
        };
        long k0 = seed & LOW_WORD;
        long k1 = seed >>> 32;
        for (int round = 0; round < 10; round++) {
            Tensor first = c[0].mul(new Scalar(0xd2511f53L));
            Tensor second = c[2].mul(new Scalar(0xcd9e8d57L));
            c = new Tensor[] {
                high(second).bitwise_xor(c[1]).bitwise_xor(new Scalar(k0)),
                low(second),
                high(first).bitwise_xor(c[3]).bitwise_xor(new Scalar(k1)),
                low(first)
            };
            k0 = (k0 + 0x9e3779b9L) & LOW_WORD;
            k1 = (k1 + 0xbb67ae85L) & LOW_WORD;
        }
        return torch.stack(new org.bytedeco.pytorch.TensorVector(c), 1).view(-1).narrow(0, 0, count);
    }

    private static Tensor low(Tensor words) {
        return words.bitwise_and(new Scalar(LOW_WORD));
    }

    private static Tensor high(Tensor words) {
        return low(words.bitwise_right_shift(new Scalar(32)));
    }
}
