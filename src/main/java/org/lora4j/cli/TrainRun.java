package org.lora4j.cli;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.TreeMap;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.bytedeco.pytorch.global.torch;
import org.jspecify.annotations.Nullable;
import org.lora4j.layer.FusedMode;
import org.lora4j.layer.QuantizationOptions;
import org.lora4j.layer.TrainingPath;
import org.lora4j.model.Lora;
import org.lora4j.model.LoraModel;
import org.lora4j.model.Quantization;
import org.lora4j.model.causal.CausalLM;
import org.lora4j.model.causal.Tokenizer;
import org.lora4j.ops.LibTorch;
import org.lora4j.train.ChatTemplate;
import org.lora4j.train.Dataset;
import org.lora4j.train.JointTrainer;
import org.lora4j.train.PreferencePairs;
import org.lora4j.train.RunLog;
import org.lora4j.train.TrainListener;
import org.lora4j.train.TrainOptions;
import org.lora4j.train.TrainResult;
import org.lora4j.train.Trainer;
import org.lora4j.train.World;

/** One run of {@code train}: loads what the settings name, trains, writes the adapter and says how it went. */
final class TrainRun {
    private final TrainSettings settings;
    private final Terminal terminal;
    private final Path base;
    private final Path out;

    /** @throws IllegalArgumentException if the settings lack something or contradict each other */
    TrainRun(TrainSettings settings, Terminal terminal) {
        this.settings = settings;
        this.terminal = terminal;
        this.base = needed(settings.base, "--base", "the folder of the model");
        this.out = needed(settings.out, "--out", "the folder for the results");
        if (!Files.isDirectory(base)) {
            throw new IllegalArgumentException("--base: " + base + " is no folder; name one with a model");
        }
        for (TrainSettings each : jobs(settings)) {
            needed(each.data, "--data", "a file to learn from");
            if (settings.jobs != null && (each.name == null || each.name.isBlank())) {
                throw new IllegalArgumentException("a job has no name: give each element of jobs a \"name\"");
            }
            if (settings.jobs != null && (each.preferences() || each.adapter != null || on(each.stream))) {
                throw new IllegalArgumentException("job \"" + each.name
                        + "\" has loss dpo, adapter or stream, which jobs cannot have: train it in a run of its own");
            }
        }
    }

    private static boolean on(@Nullable Boolean value) {
        return TrainSettings.on(value);
    }

    private static <T> T needed(@Nullable T value, String option, String what) {
        if (value == null) {
            throw new IllegalArgumentException(option + " is missing: name " + what + ", here or in --config");
        }
        return value;
    }

    private static List<TrainSettings> jobs(TrainSettings settings) {
        return settings.jobs == null
                ? List.of(settings)
                : settings.jobs.stream().map(settings::with).toList();
    }

    void run(World world) throws IOException {
        LibTorch.load();
        torch.manual_seed(settings.seed());
        try (CausalLM model = load();
                Tokenizer tokenizer = Tokenizer.load(base)) {
            if (settings.quantize != null) {
                Quantization.quantize(
                        model,
                        settings.quantize == TrainSettings.Bits.NF4
                                ? QuantizationOptions.nf4()
                                : QuantizationOptions.int8());
            }
            ChatTemplate template = settings.template == null ? ChatTemplate.of(base) : settings.template;
            if (settings.jobs != null) {
                together(model, tokenizer, template, world);
            } else {
                alone(model, tokenizer, template, world);
            }
        }
        if (world.rank() == 0) {
            peak().ifPresent(mib -> terminal.line("peak memory %d MiB", mib));
        }
    }

    private CausalLM load() throws IOException {
        if (settings.dtype == null) {
            return CausalLM.load(base);
        }
        return CausalLM.load(
                base,
                settings.dtype == TrainSettings.Type.FLOAT32 ? torch.ScalarType.Float : torch.ScalarType.BFloat16);
    }

    private void alone(CausalLM base, Tokenizer tokenizer, ChatTemplate template, World world) throws IOException {
        String name = settings.name == null ? "default" : settings.name;
        LoraModel<CausalLM> model = settings.adapter == null
                ? Lora.wrap(base, settings.config(), name)
                : Lora.load(base, settings.adapter, name);
        model.setTrainable(name, true);
        mode(model);
        List<Path> files = needed(settings.data, "--data", "");
        Source source = new Source(settings, tokenizer, template);
        PreferencePairs pairs = settings.preferences() ? source.pairs(files) : null;
        PreferencePairs heldOutPairs = pairs == null || settings.eval == null ? null : source.pairs(settings.eval);
        Dataset data = pairs == null ? source.read(files) : null;
        Dataset heldOut = data == null || settings.eval == null ? null : source.read(settings.eval);
        int examples = pairs == null ? needed(data, "", "").size() : pairs.size();
        TrainOptions options = settings.options(examples, out);
        boolean first = world.rank() == 0;
        if (first) {
            terminal.line("%s", model.trainableSummary());
            terminal.line(
                    "%d examples, %d steps of %d%s",
                    examples,
                    options.steps(examples),
                    options.batchSize(),
                    world.size() == 1 ? "" : ", " + world.size() + " processes");
        }
        TrainResult result;
        try (RunLog log = new RunLog(out, name);
                Terminal.Bar bar = first ? terminal.bar(name, options.steps(examples)) : Terminal.SILENT) {
            TrainListener listener =
                    first ? log.and(Terminal.listener(bar)).and(new Told(terminal, name)) : TrainListener.NONE;
            Trainer trainer = new Trainer(model, options, world);
            result = data == null
                    ? trainer.trainPreferences(needed(pairs, "", ""), heldOutPairs, settings.beta(), listener)
                    : trainer.train(data, heldOut, listener);
        }
        if (first) {
            paths(model);
            finish(model, name, out, result);
        }
    }

    private void together(CausalLM base, Tokenizer tokenizer, ChatTemplate template, World world) throws IOException {
        if (world.size() > 1) {
            throw new IllegalArgumentException(
                    "jobs train in one process: leave out --nproc, or train them one by one");
        }
        List<TrainSettings> all = jobs(settings);
        LoraModel<CausalLM> model = null;
        List<JointTrainer.Job> jobs = new ArrayList<>();
        List<RunLog> logs = new ArrayList<>();
        Map<String, Path> folders = new LinkedHashMap<>();
        int longest = 1;
        for (TrainSettings each : all) {
            String name = needed(each.name, "name", "the job");
            if (model == null) {
                model = Lora.wrap(base, each.config(), name);
            } else {
                model.addAdapter(name, each.config());
            }
            Source source = new Source(each, tokenizer, template);
            Dataset data = source.read(needed(each.data, "--data", ""));
            Path folder = each.out == null || each.out.equals(out) ? out.resolve(name) : each.out;
            folders.put(name, folder);
            TrainOptions options = each.options(data.size(), folder);
            longest = Math.max(longest, options.steps(data.size()));
            RunLog log = new RunLog(folder, name);
            logs.add(log);
            TrainListener listener = log.and(new Told(terminal, name));
            Dataset heldOut = each.eval == null ? null : source.read(each.eval);
            jobs.add(new JointTrainer.Job(name, data, heldOut, options, listener));
        }
        LoraModel<CausalLM> trained = needed(model, "jobs", "at least one job");
        mode(trained);
        terminal.line("%d jobs: %s", jobs.size(), folders.keySet());
        Map<String, TrainResult> results;
        try {
            results = new JointTrainer(trained, jobs).train();
        } finally {
            logs.forEach(RunLog::close);
        }
        paths(trained);
        for (Map.Entry<String, TrainResult> each : results.entrySet()) {
            finish(trained, each.getKey(), needed(folders.get(each.getKey()), "", ""), each.getValue());
        }
    }

    private void mode(LoraModel<CausalLM> model) {
        model.training().mode(settings.fused == null ? FusedMode.AUTO : settings.fused);
    }

    /** How many layers took which path, or each of them. */
    private void paths(LoraModel<CausalLM> model) {
        if (on(settings.paths)) {
            terminal.line("%s", model.training());
            return;
        }
        Map<TrainingPath.Kind, Long> counts = model.training().taken().stream()
                .collect(Collectors.groupingBy(TrainingPath::kind, TreeMap::new, Collectors.counting()));
        terminal.line(
                "layers by path: %s (--paths names them)",
                counts.entrySet().stream()
                        .map(each -> each.getValue() + " "
                                + each.getKey().name().toLowerCase(Locale.ROOT).replace('_', ' '))
                        .collect(Collectors.joining(", ")));
    }

    private void finish(LoraModel<CausalLM> model, String name, Path folder, TrainResult result) throws IOException {
        Path adapter = folder.resolve("adapter");
        Path best = result.best();
        if (best == null) {
            model.save(adapter, name);
        } else {
            Files.createDirectories(adapter);
            try (Stream<Path> files = Files.list(best)) {
                for (Path file : files.toList()) {
                    Files.copy(file, adapter.resolve(file.getFileName()), StandardCopyOption.REPLACE_EXISTING);
                }
            }
        }
        terminal.line(
                "%s: %d steps, loss %.4f%s, %.0f learned tokens a second; adapter in %s",
                name,
                result.steps(),
                result.loss(),
                best == null
                        ? ""
                        : String.format(
                                Locale.ROOT, ", best held-out loss %.4f (%s)", result.bestLoss(), best.getFileName()),
                result.tokens() / Math.max(1e-9, result.seconds()),
                adapter);
    }

    private static java.util.OptionalLong peak() {
        try (Stream<String> lines = Files.lines(Path.of("/proc/self/status"))) {
            return lines.filter(line -> line.startsWith("VmHWM:"))
                    .mapToLong(line -> Long.parseLong(line.replaceAll("[^0-9]", "")) >> 10)
                    .findFirst();
        } catch (IOException e) {
            return java.util.OptionalLong.empty();
        }
    }

    /** Reads the files of one job. */
    private record Source(TrainSettings settings, Tokenizer tokenizer, ChatTemplate template) {
        Dataset read(List<Path> files) throws IOException {
            if (on(settings.stream) && files.size() == 1) {
                return Dataset.stream(files.get(0), tokenizer, template, settings.maxLength());
            }
            if (on(settings.stream)) {
                throw new IllegalArgumentException("--stream reads one file, but --data names " + files.size());
            }
            List<Dataset> parts = new ArrayList<>();
            for (Path file : files) {
                parts.add(Dataset.read(file, tokenizer, template, settings.maxLength()));
            }
            return Dataset.concat(parts);
        }

        PreferencePairs pairs(List<Path> files) throws IOException {
            if (files.size() > 1) {
                throw new IllegalArgumentException("loss dpo reads one file, but got " + files);
            }
            return PreferencePairs.read(files.get(0), tokenizer, settings.maxLength());
        }
    }

    /** Prints evaluations. */
    private record Told(Terminal terminal, String name) implements TrainListener {
        @Override
        public void onStep(int step, int steps, double loss, double learningRate) {}

        @Override
        public void onStart(int step, int steps) {
            if (step > 0) {
                terminal.line("%s goes on after step %d of %d", name, step, steps);
            }
        }

        @Override
        public void onEvaluation(int step, double loss) {
            terminal.line("  %s, step %d: held-out loss %.4f", name, step, loss);
        }
    }
}
