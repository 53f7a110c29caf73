package org.lora4j.cli;

import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import org.jspecify.annotations.Nullable;
import org.lora4j.train.World;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.Spec;

/** Trains adapters. */
@Command(
        name = "train",
        description = {
            "Trains a LoRA adapter, or several at once, on a language model in Hugging Face's format.",
            "",
            "Example:",
            "  lora4j train --base model --data train.jsonl --eval heldout.jsonl --out run --epochs 2 --lr 1e-3",
            "",
            "--out gets adapter/ (PEFT's format; the best by held-out loss, else the last), checkpoint-N/, best-N/,"
                    + " log.jsonl, tensorboard/ and report.html. A YAML file for --config has the same names as keys,"
                    + " without dashes in front; options override it. Its key \"jobs\", a list of settings with a"
                    + " \"name\" each, trains several adapters on one model together.",
            "",
            "Processes: --nproc N starts N here; torchrun, SLURM and others start them by RANK, WORLD_SIZE,"
                    + " MASTER_ADDR and MASTER_PORT in the environment.",
            ""
        },
        mixinStandardHelpOptions = true,
        sortOptions = false)
final class TrainCommand implements Callable<Integer> {
    @Spec
    private CommandSpec spec;

    @Option(names = "--config", paramLabel = "FILE", description = "A YAML file with these settings.")
    private @Nullable Path config;

    @Mixin
    private TrainSettings options = new TrainSettings();

    @Override
    public Integer call() throws IOException, InterruptedException {
        TrainSettings settings;
        try {
            settings = config == null ? options : TrainFile.read(config).with(options);
        } catch (IllegalArgumentException e) {
            throw new ParameterException(spec.commandLine(), String.valueOf(e.getMessage()), e);
        }
        Map<String, String> environment = System.getenv();
        int processes = settings.nproc == null ? 1 : settings.nproc;
        if (processes < 1) {
            throw new ParameterException(spec.commandLine(), "--nproc is " + processes + " but must be 1 or more");
        }
        if (processes > 1 && !environment.containsKey("WORLD_SIZE")) {
            List<String> arguments = spec.root().commandLine().getParseResult().originalArgs();
            return Processes.run(processes, arguments, spec.commandLine().getErr());
        }
        TrainRun run;
        try {
            run = new TrainRun(settings, new Terminal(spec.commandLine().getOut(), Terminal.attached()));
        } catch (IllegalArgumentException e) {
            throw new ParameterException(spec.commandLine(), String.valueOf(e.getMessage()), e);
        }
        try (World world = World.fromEnvironment(environment)) {
            run.run(world);
        }
        return 0;
    }
}
