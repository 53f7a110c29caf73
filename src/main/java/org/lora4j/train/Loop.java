package org.lora4j.train;

import java.util.ArrayList;
import java.util.List;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.lora4j.layer.LivePasses;

/** The steps of one run, on one process or several. */
final class Loop<T> {
    private final Objective<T> objective;
    private final World world;

    Loop(Objective<T> objective, World world) {
        this.objective = objective;
        this.world = world;
    }

    /** The seed of one step on one process. */
    static long seed(long seed, int step, int rank) {
        long z = seed * 0x9E3779B97F4A7C15L + step * 0xBF58476D1CE4E5B9L + rank * 0x94D049BB133111EBL;
        z = (z ^ (z >>> 30)) * 0xBF58476D1CE4E5B9L;
        z = (z ^ (z >>> 27)) * 0x94D049BB133111EBL;
        return z ^ (z >>> 31);
    }

    /** Gives all processes the parameters of the first. */
    static void share(World world, List<Tensor> parameters) {
        if (world.size() > 1) {
            try (PointerScope scope = new PointerScope();
                    NoGradGuard noGrad = new NoGradGuard()) {
                for (Tensor parameter : parameters) {
                    Tensor value = parameter.detach().contiguous().clone();
                    if (world.rank() > 0) {
                        value.zero_();
                    }
                    world.sum(List.of(value));
                    parameter.copy_(value);
                }
            }
        }
    }

    TrainResult run(Run<T> run) {
        TrainOptions options = run.options();
        if (options.batchSize() % (options.accumulation() * world.size()) != 0) {
            throw new IllegalArgumentException("TrainOptions.batchSize = " + options.batchSize()
                    + ": must be a multiple of"
                    + " accumulation (" + options.accumulation() + ") times the number of processes (" + world.size()
                    + ")");
        }
        objective.training(true);
        try {
            while (!run.done()) {
                List<T> batch = run.begin();
                long weight = objective.weight(batch);
                double sum;
                try (PointerScope scope = new PointerScope()) {
                    torch.manual_seed(seed(options.seed(), run.step(), world.rank()));
                    sum = gradients(batch, weight, run);
                } finally {
                    LivePasses.release();
                }
                run.end(sum, weight);
            }
            return run.result();
        } finally {
            LivePasses.release();
            objective.training(false);
        }
    }

    /** The summed loss of the whole batch, with gradients of its mean, of all processes. */
    private double gradients(List<T> batch, long weight, Run<T> run) {
        List<T> own = new ArrayList<>();
        for (int i = world.rank(); i < batch.size(); i += world.size()) {
            own.add(batch.get(i));
        }
        double sum = 0;
        int size = run.options().batchSize() / run.options().accumulation() / world.size();
        for (int from = 0; from < own.size(); from += size) {
            List<T> part = own.subList(from, Math.min(from + size, own.size()));
            if (objective.weight(part) > 0) {
                sum += Memory.explained(run, part.size(), () -> {
                    try (PointerScope scope = new PointerScope()) {
                        return objective.backward(part, 1.0 / weight);
                    }
                });
            }
            LivePasses.release();
        }
        return world.size() == 1 ? sum : total(sum, run);
    }

    private double total(double sum, Run<T> run) {
        Tensor total = torch.full(new long[] {1}, new Scalar(sum)).to(torch.ScalarType.Double);
        total.fill_(new Scalar(sum));
        List<Tensor> tensors = new ArrayList<>(run.gradients());
        tensors.add(total);
        try {
            world.sum(tensors);
        } catch (RuntimeException e) {
            throw new IllegalStateException(
                    "another process of this run is gone at step " + (run.step() + 1) + " (" + Memory.firstLine(e) + ")"
                            + run.lastGood() + ": start all processes again with resume",
                    e);
        }
        return total.item_double();
    }

    /** The mean loss of data. */
    static <T> double mean(Objective<T> objective, List<T> data, TrainOptions options) {
        objective.training(false);
        double sum = 0;
        long weight = 0;
        int size = Math.max(1, options.batchSize() / options.accumulation());
        for (int from = 0; from < data.size(); from += size) {
            List<T> part = List.copyOf(data.subList(from, Math.min(from + size, data.size())));
            long own = objective.weight(part);
            if (own > 0) {
                sum += objective.value(part);
                weight += own;
            }
        }
        if (weight == 0) {
            throw new IllegalArgumentException("no example has a completion token within maxLength = "
                    + options.maxLength() + ": raise it or shorten the prompts");
        }
        return sum / weight;
    }
}
