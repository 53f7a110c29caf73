package org.lora4j.train;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.jspecify.annotations.Nullable;
import org.lora4j.layer.Adapter;
import org.lora4j.model.LoraModel;
import org.lora4j.model.causal.CausalLM;

/**
 * Trains the active adapters of a causal language model with AdamW, on the loss of the completions.
 *
 * <p>Native memory of a step is released when the step ends. A run is a function of the model, the data and the options:
 * on one machine with one thread count it gives the same adapters bit for bit, also if it was ended between two steps and
 * resumed. Every step seeds LibTorch's default generator.
 */
public final class Trainer {
    private final LoraModel<CausalLM> model;
    private final TrainOptions options;
    private final World world;

    /**
     * A trainer for the adapters active now.
     *
     * @throws IllegalStateException if no adapter is active
     */
    public Trainer(LoraModel<CausalLM> model, TrainOptions options) {
        this(model, options, World.ALONE);
    }

    /**
     * Likewise for one of several processes that train together: each takes its share of every batch, and all end with the
     * same adapters, those of one process with the same batches. The first process's adapter is where all start.
     *
     * @throws IllegalStateException if no adapter is active
     */
    public Trainer(LoraModel<CausalLM> model, TrainOptions options, World world) {
        if (model.trainableParameters().isEmpty()) {
            throw new IllegalStateException("the model has nothing to train: add an adapter and make it active");
        }
        if (options.packing()
                && model.activeAdapters().stream()
                        .anyMatch(name ->
                                !model.adapter(name).config().invocationTokens().isEmpty())) {
            throw new IllegalArgumentException(
                    "TrainOptions.packing = true: an adapter that starts at its invocation tokens"
                            + " needs one text a row; switch packing off");
        }
        this.model = model;
        this.options = options;
        this.world = world;
    }

    /** Trains on data, with nothing held out. */
    public TrainResult train(Dataset data, TrainListener listener) {
        return train(data, null, listener);
    }

    /**
     * Trains on data.
     *
     * @param heldOut evaluated every {@link TrainOptions#evalEvery()} steps and after the last one
     * @throws IllegalArgumentException if {@link TrainOptions#maxLength()} leaves an example without a completion, or a
     *     checkpoint to resume from is of another run
     * @throws IllegalStateException if the loss stops being a number or memory runs out, naming the last good checkpoint
     */
    public TrainResult train(Dataset data, @Nullable Dataset heldOut, TrainListener listener) {
        checkLengths(data);
        return run(
                new Completions(model.base(), model::refresh, options),
                data.samples(),
                heldOut == null ? null : heldOut.samples(),
                listener);
    }

    /**
     * Trains on preferences (DPO), with the model without its adapters as the reference. The loss is the mean of pairs.
     *
     * @param beta how strongly the model is held to the reference, above 0; 0.1 is usual
     * @throws IllegalArgumentException if beta is not above 0 or packing is on
     * @throws IllegalStateException as for {@link #train(Dataset, Dataset, TrainListener)}
     */
    public TrainResult trainPreferences(
            PreferencePairs data, @Nullable PreferencePairs heldOut, double beta, TrainListener listener) {
        if (!(beta > 0) || Double.isInfinite(beta)) {
            throw new IllegalArgumentException("beta = " + beta + ": must be a number above 0; 0.1 is usual");
        }
        if (options.packing()) {
            throw new IllegalArgumentException(
                    "TrainOptions.packing = true: preferences are not packed; switch it off");
        }
        Objective<PreferencePairs.Pair> objective = new Preferences(model, options, beta);
        return run(objective, data.pairs(), heldOut == null ? null : heldOut.pairs(), listener);
    }

    private <T> TrainResult run(
            Objective<T> objective, List<T> data, @Nullable List<T> heldOut, TrainListener listener) {
        Loop.share(world, model.trainableParameters());
        model.refresh();
        try (Run<T> run = new Run<>(
                objective,
                ParameterGroup.of(trained(model), options.loraPlusRatio()),
                options,
                world,
                checkpoints(model, options),
                data,
                heldOut,
                listener)) {
            return new Loop<>(objective, world).run(run);
        }
    }

    static List<Adapter> trained(LoraModel<CausalLM> model) {
        List<Adapter> trained = new ArrayList<>();
        for (String name : model.activeAdapters()) {
            if (model.adapter(name).trainable()) {
                trained.add(model.adapter(name));
            }
        }
        return trained;
    }

    static @Nullable Checkpoints checkpoints(LoraModel<CausalLM> model, TrainOptions options) {
        Path output = options.output();
        if (output == null) {
            return null;
        }
        List<String> names = trained(model).stream().map(Adapter::name).toList();
        return new Checkpoints(output, folder -> {
            for (String name : names) {
                model.save(names.size() == 1 ? folder : folder.resolve(name), name);
            }
        });
    }

    /** The mean loss per token of the completions, without dropout and without gradients. */
    public double evaluate(Dataset data) {
        return evaluate(model.base(), data, options);
    }

    /** The mean loss per completion token of any causal language model, with whatever adapters are active. */
    public static double evaluate(CausalLM model, Dataset data, TrainOptions options) {
        return Loop.mean(new Completions(model, () -> {}, options), data.samples(), options);
    }

    private void checkLengths(Dataset data) {
        List<Sample> samples = data.samples();
        if (samples instanceof StreamedSamples) {
            return;
        }
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
