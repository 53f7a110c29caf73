package org.lora4j.cli;

import java.lang.reflect.Field;
import java.nio.file.Path;
import java.util.List;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.LoraConfigBuilder;
import org.lora4j.config.ModuleSelector;
import org.lora4j.layer.FusedMode;
import org.lora4j.train.ChatTemplate;
import org.lora4j.train.Schedule;
import org.lora4j.train.TrainOptions;
import picocli.CommandLine.Option;

/**
 * What {@code train} was told, by options, by a YAML file whose keys are the options' names, or by one of the jobs in it.
 * What was not said is null; defaults are applied at the end.
 */
final class TrainSettings {
    /** Losses. */
    enum Loss {
        SFT,
        DPO
    }

    /** How the base may be quantized. */
    enum Bits {
        NF4,
        INT8
    }

    /** Types to compute in. */
    enum Type {
        FLOAT32,
        BFLOAT16
    }

    @Option(names = "--base", paramLabel = "DIR", description = "The model: a folder in Hugging Face's format.")
    @Nullable
    Path base;

    @Option(
            names = "--data",
            paramLabel = "FILE",
            split = ",",
            description = "What to learn: .jsonl with prompt and completion, text, or messages; or plain text.")
    @Nullable
    List<Path> data;

    @Option(names = "--eval", paramLabel = "FILE", split = ",", description = "Held-out data, to measure on.")
    @Nullable
    List<Path> eval;

    @Option(names = "--out", paramLabel = "DIR", description = "Where adapter, checkpoints and logs go.")
    @Nullable
    Path out;

    @Option(names = "--adapter", paramLabel = "DIR", description = "Go on training this adapter.")
    @Nullable
    Path adapter;

    @Option(names = "--rank", paramLabel = "R", description = "Rank of the adapter. Default: 8")
    @Nullable
    Integer rank;

    @Option(names = "--alpha", paramLabel = "A", description = "Its scale is A / rank. Default: twice the rank")
    @Nullable
    Double alpha;

    @Option(names = "--dropout", paramLabel = "P", description = "Dropout before A. Default: 0")
    @Nullable
    Double dropout;

    @Option(
            names = "--targets",
            paramLabel = "NAME",
            split = ",",
            description = "Modules to adapt, or all-linear. Default: PEFT's for the model")
    @Nullable
    List<String> targets;

    @Option(names = "--init", paramLabel = "NAME", description = "How A and B start: gaussian, pissa, olora, ...")
    @Nullable
    String init;

    @Option(names = "--rslora", description = "Scale by alpha / sqrt(rank).", arity = "0..1", fallbackValue = "true")
    @Nullable
    Boolean rslora;

    @Option(names = "--dora", description = "Train magnitudes, too (DoRA).", arity = "0..1", fallbackValue = "true")
    @Nullable
    Boolean dora;

    @Option(names = "--dtype", paramLabel = "TYPE", description = "float32 or bfloat16. Default: the checkpoint's")
    @Nullable
    Type dtype;

    @Option(names = "--quantize", paramLabel = "KIND", description = "Keep the base in nf4 or int8.")
    @Nullable
    Bits quantize;

    @Option(names = "--steps", paramLabel = "N", description = "Optimizer steps.")
    @Nullable
    Integer steps;

    @Option(names = "--epochs", paramLabel = "N", description = "Passes over the data. Default: 1, without --steps")
    @Nullable
    Integer epochs;

    @Option(names = "--batch-size", paramLabel = "N", description = "Examples a step, of all processes. Default: 8")
    @Nullable
    Integer batchSize;

    @Option(names = "--accumulation", paramLabel = "N", description = "Passes a step is split into. Default: 1")
    @Nullable
    Integer accumulation;

    @Option(names = "--max-length", paramLabel = "N", description = "Tokens an example is cut to. Default: 512")
    @Nullable
    Integer maxLength;

    @Option(names = "--packing", description = "Several examples a row.", arity = "0..1", fallbackValue = "true")
    @Nullable
    Boolean packing;

    @Option(
            names = "--stream",
            description = "Read .jsonl data while training, for files larger than memory.",
            arity = "0..1",
            fallbackValue = "true")
    @Nullable
    Boolean stream;

    @Option(names = "--template", paramLabel = "T", description = "chatml, llama3 or plain. Default: the checkpoint's")
    @Nullable
    ChatTemplate template;

    @Option(names = "--lr", paramLabel = "X", description = "Peak learning rate. Default: 0.001")
    @Nullable
    Double lr;

    @Option(names = "--warmup", paramLabel = "N", description = "Steps of its linear rise. Default: 0")
    @Nullable
    Integer warmup;

    @Option(names = "--schedule", paramLabel = "S", description = "constant, linear or cosine. Default: linear")
    @Nullable
    Schedule schedule;

    @Option(names = "--weight-decay", paramLabel = "X", description = "AdamW's. Default: 0")
    @Nullable
    Double weightDecay;

    @Option(names = "--clip", paramLabel = "X", description = "Largest norm of the gradients. Default: 1")
    @Nullable
    Double clip;

    @Option(names = "--lora-plus", paramLabel = "X", description = "B learns X times as fast as A (LoRA+). Default: 1")
    @Nullable
    Double loraPlus;

    @Option(names = "--eight-bit", description = "AdamW's state in 8 bits.", arity = "0..1", fallbackValue = "true")
    @Nullable
    Boolean eightBit;

    @Option(names = "--eval-every", paramLabel = "N", description = "Steps between evaluations. Default: a tenth")
    @Nullable
    Integer evalEvery;

    @Option(names = "--patience", paramLabel = "N", description = "Stop after N evaluations that are no better.")
    @Nullable
    Integer patience;

    @Option(names = "--save-every", paramLabel = "N", description = "Steps between checkpoints. Default: a tenth")
    @Nullable
    Integer saveEvery;

    @Option(names = "--keep", paramLabel = "N", description = "Checkpoints to keep. Default: 2")
    @Nullable
    Integer keep;

    @Option(
            names = "--resume",
            description = "Go on from the newest checkpoint in --out, if there is one.",
            arity = "0..1",
            fallbackValue = "true")
    @Nullable
    Boolean resume;

    @Option(names = "--seed", paramLabel = "S", description = "Seed of all random numbers. Default: 0")
    @Nullable
    Long seed;

    @Option(names = "--loss", paramLabel = "L", description = "sft, or dpo: prompt, chosen, rejected. Default: sft")
    @Nullable
    Loss loss;

    @Option(names = "--beta", paramLabel = "X", description = "DPO's. Default: 0.1")
    @Nullable
    Double beta;

    @Option(
            names = "--fused",
            paramLabel = "M",
            description = "auto, required (fail instead of falling back) or off. Default: auto")
    @Nullable
    FusedMode fused;

    @Option(names = "--paths", description = "Print how each layer trains.", arity = "0..1", fallbackValue = "true")
    @Nullable
    Boolean paths;

    @Option(names = "--nproc", paramLabel = "N", description = "Processes that share each batch. Default: 1")
    @Nullable
    Integer nproc;

    /** What a job is called; only in a file. */
    @Nullable
    String name;

    /** Adapters to train jointly, each with settings of its own; only in a file. */
    @Nullable
    List<TrainSettings> jobs;

    /** These settings, with those of another where they say something. */
    TrainSettings with(TrainSettings above) {
        TrainSettings result = new TrainSettings();
        try {
            for (Field field : TrainSettings.class.getDeclaredFields()) {
                Object value = field.get(above);
                field.set(result, value == null ? field.get(this) : value);
            }
        } catch (IllegalAccessException e) {
            throw new IllegalStateException(e);
        }
        return result;
    }

    private static <T> T or(@Nullable T value, T otherwise) {
        return value == null ? otherwise : value;
    }

    static boolean on(@Nullable Boolean value) {
        return or(value, false);
    }

    int maxLength() {
        return or(maxLength, 512);
    }

    double beta() {
        return or(beta, 0.1);
    }

    long seed() {
        return or(seed, 0L);
    }

    boolean preferences() {
        return loss == Loss.DPO;
    }

    LoraConfig config() {
        int r = or(rank, 8);
        LoraConfigBuilder config = LoraConfig.builder()
                .r(r)
                .loraAlpha(or(alpha, 2.0 * r))
                .loraDropout(or(dropout, 0.0))
                .useRslora(on(rslora))
                .useDora(on(dora));
        if (targets != null) {
            boolean all = targets.size() == 1 && targets.get(0).equalsIgnoreCase(ModuleSelector.ALL_LINEAR);
            config.targetModules(all ? ModuleSelector.allLinear() : ModuleSelector.names(targets));
        }
        if (init != null) {
            config.initLoraWeights(init);
        }
        return config.build();
    }

    /** @param examples of the training data */
    TrainOptions options(int examples, Path output) {
        int batch = or(batchSize, 8);
        TrainOptions.Builder options = TrainOptions.builder()
                .batchSize(batch)
                .accumulation(or(accumulation, 1))
                .maxLength(maxLength())
                .packing(on(packing))
                .learningRate(or(lr, 1e-3))
                .warmupSteps(or(warmup, 0))
                .schedule(or(schedule, Schedule.LINEAR))
                .weightDecay(or(weightDecay, 0.0))
                .maxGradNorm(or(clip, 1.0))
                .loraPlusRatio(or(loraPlus, 1.0))
                .eightBitState(on(eightBit))
                .keepCheckpoints(or(keep, 2))
                .patience(or(patience, 0))
                .resume(on(resume))
                .seed(seed())
                .output(output);
        int all;
        if (steps != null) {
            options.steps(steps).epochs(or(epochs, 0));
            all = steps;
        } else {
            options.epochs(or(epochs, 1));
            all = or(epochs, 1) * Math.max(1, examples / Math.max(1, batch));
        }
        int tenth = Math.max(1, all / 10);
        return options.evalEvery(or(evalEvery, eval == null ? 0 : tenth))
                .saveEvery(or(saveEvery, tenth))
                .build();
    }
}
