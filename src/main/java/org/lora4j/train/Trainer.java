package org.lora4j.train;

import java.util.List;
import java.util.function.BinaryOperator;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.AdamW;
import org.bytedeco.pytorch.AdamWOptions;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.jspecify.annotations.Nullable;
import org.lora4j.model.LoraModel;
import org.lora4j.model.causal.CausalLM;

/**
 * Trains the active adapters of a causal language model with AdamW, on the loss of the completions.
 *
 * <p>Native memory of a step is released when the step ends. A run is a function of the model, the data and the options:
 * on one machine with one thread count it gives the same adapters bit for bit. It seeds LibTorch's global generator.
 */
public final class Trainer {
    private final Module module;
    private final List<Tensor> parameters;
    private final BinaryOperator<Tensor> loss;
    private final Runnable afterStep;
    private final TrainOptions options;

    /**
     * A trainer for the adapters active now.
     *
     * @throws IllegalStateException if no adapter is active
     */
    public Trainer(LoraModel<CausalLM> model, TrainOptions options) {
        this(model.base(), model.trainableParameters(), model.base()::loss, model::refresh, options);
    }

    /** @param afterStep runs whenever the parameters have changed */
    Trainer(
            Module module,
            List<Tensor> parameters,
            BinaryOperator<Tensor> loss,
            Runnable afterStep,
            TrainOptions options) {
        if (parameters.isEmpty()) {
            throw new IllegalStateException("the model has nothing to train: add an adapter and make it active");
        }
        this.module = module;
        this.parameters = List.copyOf(parameters);
        this.loss = loss;
        this.afterStep = afterStep;
        this.options = options;
    }

    /** Trains on data, with nothing held out. */
    public TrainResult train(Dataset data, TrainListener listener) {
        return train(data, null, listener);
    }

    /**
     * Trains on data.
     *
     * @param heldOut evaluated every {@link TrainOptions#evalEvery()} steps and after the last one
     * @throws IllegalArgumentException if {@link TrainOptions#maxLength()} leaves an example without a completion
     * @throws IllegalStateException if the loss stops being a number
     */
    public TrainResult train(Dataset data, @Nullable Dataset heldOut, TrainListener listener) {
        checkLengths(data);
        long start = System.nanoTime();
        int steps = options.steps(data.size());
        var batches = new BatchOrder(data.samples(), options.batchSize(), options.seed());
        long tokens = 0;
        double last = Double.NaN;
        torch.manual_seed(options.seed());
        module.train(true);
        try (PointerScope run = new PointerScope()) {
            TensorVector leaves = new TensorVector(parameters.toArray(new Tensor[0]));
            AdamW optimizer = new AdamW(leaves, adamW());
            for (int step = 0; step < steps; step++) {
                double rate = options.learningRate() * options.schedule().factor(step, options.warmupSteps(), steps);
                try (PointerScope scope = new PointerScope()) {
                    Batch batch = Batch.of(batches.next(), options.maxLength());
                    last = step(batch, optimizer, leaves, rate, step);
                    tokens += batch.targets();
                }
                listener.onStep(step + 1, steps, last, rate);
                if (heldOut != null && evaluateAfter(step + 1, steps)) {
                    listener.onEvaluation(step + 1, evaluate(heldOut));
                    module.train(true);
                }
            }
            optimizer.zero_grad();
        } finally {
            module.eval();
        }
        return new TrainResult(steps, tokens, last, (System.nanoTime() - start) / 1e9);
    }

    /** The mean loss per token of the completions, without dropout and without gradients. */
    public double evaluate(Dataset data) {
        return evaluate(module, loss, data, options);
    }

    /** The mean loss per completion token of any causal language model, with whatever adapters are active. */
    public static double evaluate(CausalLM model, Dataset data, TrainOptions options) {
        return evaluate(model, model::loss, data, options);
    }

    private static double evaluate(Module module, BinaryOperator<Tensor> loss, Dataset data, TrainOptions options) {
        module.eval();
        double sum = 0;
        long tokens = 0;
        List<Sample> samples = data.samples();
        for (int from = 0; from < samples.size(); from += options.batchSize()) {
            int to = Math.min(from + options.batchSize(), samples.size());
            try (PointerScope scope = new PointerScope();
                    NoGradGuard guard = new NoGradGuard()) {
                Batch batch = Batch.of(samples.subList(from, to), options.maxLength());
                if (batch.targets() > 0) {
                    sum += loss.apply(batch.ids(), batch.labels()).item_double() * batch.targets();
                    tokens += batch.targets();
                }
            }
        }
        if (tokens == 0) {
            throw new IllegalArgumentException("no example has a completion token within maxLength = "
                    + options.maxLength() + ": raise it or shorten the prompts");
        }
        return sum / tokens;
    }

    private double step(Batch batch, AdamW optimizer, TensorVector leaves, double rate, int step) {
        optimizer.zero_grad();
        Tensor mean = loss.apply(batch.ids(), batch.labels());
        double value = mean.item_double();
        if (!Double.isFinite(value)) {
            throw new IllegalStateException("the loss became " + value + " at step " + (step + 1)
                    + ": lower the learning rate (" + options.learningRate() + ") or check the data");
        }
        mean.backward();
        if (Double.isFinite(options.maxGradNorm())) {
            torch.clip_grad_norm_(leaves, options.maxGradNorm());
        }
        optimizer.param_groups().get(0).options().set_lr(rate);
        optimizer.step();
        afterStep.run();
        return value;
    }

    private AdamWOptions adamW() {
        AdamWOptions adamW = new AdamWOptions(options.learningRate());
        adamW.weight_decay().put(options.weightDecay());
        return adamW;
    }

    private boolean evaluateAfter(int step, int steps) {
        return options.evalEvery() > 0 && (step % options.evalEvery() == 0 || step == steps);
    }

    private void checkLengths(Dataset data) {
        List<Sample> samples = data.samples();
        for (int i = 0; i < samples.size(); i++) {
            int prompt = samples.get(i).promptLength();
            if (prompt >= options.maxLength()) {
                throw new IllegalArgumentException("example " + i + " has a prompt of " + prompt
                        + " tokens, so TrainOptions.maxLength = " + options.maxLength()
                        + " leaves no completion: raise it or shorten the prompt");
            }
        }
    }
}
