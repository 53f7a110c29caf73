package org.lora4j.cli;

import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.TaskType;
import org.lora4j.model.Lora;
import org.lora4j.model.LoraModel;
import org.lora4j.model.causal.CausalLM;
import org.lora4j.model.causal.Tokenizer;
import org.lora4j.ops.LibTorch;
import org.lora4j.ops.Ops;
import org.lora4j.train.LossCurve;
import org.lora4j.train.Schedule;
import org.lora4j.train.TrainOptions;
import org.lora4j.train.TrainResult;
import org.lora4j.train.Trainer;

/** The demo from start to end. Each stage prints what it does and notes what it finds in the summary. */
final class Demo {
    private static final String BASE = "base";
    private static final String DEFINITIONS = "definitions";
    private static final String VERSES = "verses";
    private static final String MIX = "mix";
    private static final String MERGED = "definitions, merged";
    private static final int STAGES = 8;

    private final DemoSettings settings;
    private final Terminal terminal;
    private final Summary summary = new Summary();
    private final List<LossCurve> curves = new ArrayList<>();
    private final TrainOptions options;

    Demo(DemoSettings settings, Terminal terminal) {
        this.settings = settings;
        this.terminal = terminal;
        this.options = TrainOptions.builder()
                .steps(settings.steps())
                .batchSize(16)
                .maxLength(128)
                .learningRate(3e-3)
                .warmupSteps(Math.min(10, settings.steps()))
                .schedule(Schedule.COSINE)
                .evalEvery(Math.max(20, settings.steps() / 5))
                .seed(settings.seed())
                .build();
    }

    /**
     * Runs all stages and writes the report.
     *
     * @return whether every check passed
     */
    boolean run() throws IOException {
        LibTorch.load();
        OutputFolder.prepare(settings.out());
        torch.manual_seed(settings.seed());
        try (CausalLM base = CausalLM.load(settings.base());
                Tokenizer tokenizer = Tokenizer.load(settings.base())) {
            stages(base, tokenizer);
        }
        print();
        new Report(summary, curves).write(settings.out());
        terminal.line("%nwritten to %s: report.html, summary.json, adapters, merged model", settings.out());
        return summary.passed();
    }

    private void stages(CausalLM base, Tokenizer tokenizer) throws IOException {
        List<DemoTask> tasks = List.of(
                DemoTask.read(settings.tasks(), DEFINITIONS, tokenizer),
                DemoTask.read(settings.tasks(), VERSES, tokenizer));
        String before = Checksum.of(base);

        stage("load the base and measure it", () -> introduce(base, tasks));
        LoraModel<CausalLM> lora = Lora.wrap(base, config(), DEFINITIONS);
        lora.addAdapter(VERSES, config());
        var model = new DemoModel(lora, tokenizer);
        stage("train two adapters", () -> tasks.forEach(task -> train(lora, task)));
        stage("measure both, and read what they write", () -> compare(model, lora, tasks));
        long[][] rows = DemoModel.rows(tasks, tokenizer);
        stage("save both, reload them into a fresh model", () -> reload(model, lora, rows));
        stage("one batch: adapter 1, adapter 2, no adapter", () -> mix(model, lora, rows));
        stage("combine both into a third", () -> combine(lora, tasks));
        stage("merge one into the weights and take it out", () -> mergeAndBack(lora, tasks, before));
        stage("write the merged model, reload it", () -> export(lora, rows, tasks));
    }

    private void introduce(CausalLM base, List<DemoTask> tasks) {
        long weights = countWeights(base);
        summary.facts.put(
                "base", "%s, %.1f million weights, %s".formatted(base.config().family(), weights / 1e6, base.dtype()));
        summary.facts.put("training", "rank %d, %d steps of 16 examples".formatted(settings.rank(), settings.steps()));
        summary.facts.put("operations", Ops.describe());
        summary.facts.values().forEach(fact -> terminal.line("  %s", fact));
        measure(BASE, base, tasks);
    }

    private void train(LoraModel<CausalLM> lora, DemoTask task) {
        lora.setActive(task.name());
        var curve = new LossCurve(task.name());
        curve.onEvaluation(0, summary.loss(BASE, task.name()));
        curves.add(curve);
        TrainResult result;
        try (Terminal.Bar bar = terminal.bar(task.name(), settings.steps())) {
            result = new Trainer(lora, options).train(task.train(), task.heldOut(), curve.and(Terminal.listener(bar)));
        }
        terminal.line("  %s", lora.trainableSummary());
        terminal.line("  %s: %.0f tokens a second", task.name(), result.tokens() / result.seconds());
    }

    private void compare(DemoModel model, LoraModel<CausalLM> lora, List<DemoTask> tasks) {
        for (DemoTask task : tasks) {
            lora.setActive(task.name());
            measure(task.name(), lora.base(), tasks);
            double from = summary.loss(BASE, task.name());
            double to = summary.loss(task.name(), task.name());
            check(task.name() + " learned its task", to < from, "held-out loss %.4f, base %.4f", to, from);
        }
        for (DemoTask task : tasks) {
            for (String prompt : task.prompts()) {
                terminal.line("  > %s", prompt.strip());
                for (String adapter : List.of(DemoModel.NO_ADAPTER, DEFINITIONS, VERSES)) {
                    String name = adapter.equals(DemoModel.NO_ADAPTER) ? BASE : adapter;
                    String text = model.with(adapter, () -> model.write(prompt)).strip();
                    summary.samples.add(new Summary.Sample(name, prompt, text));
                    terminal.line("    %-12s %s", name, text.replace('\n', ' '));
                }
            }
        }
    }

    private void reload(DemoModel model, LoraModel<CausalLM> lora, long[][] rows) throws IOException {
        List<String> names = List.of(DEFINITIONS, VERSES);
        for (String name : names) {
            lora.save(adapterFolder(name), name);
        }
        try (CausalLM fresh = CausalLM.load(settings.base())) {
            LoraModel<CausalLM> reloaded = Lora.load(fresh, adapterFolder(DEFINITIONS), DEFINITIONS);
            reloaded.loadAdapter(adapterFolder(VERSES), VERSES);
            for (String name : names) {
                reloaded.setActive(name);
                float[][] expected = model.with(name, () -> DemoModel.logits(lora.base(), rows));
                double difference = DemoModel.difference(expected, DemoModel.logits(fresh, rows));
                check(name + " reloaded gives equal logits", difference == 0, "largest difference %s", difference);
            }
        }
    }

    /** Rows of one batch with different adapters against runs of each row alone with its adapter. */
    private void mix(DemoModel model, LoraModel<CausalLM> lora, long[][] rows) {
        String[] adapters = {DEFINITIONS, VERSES, DemoModel.NO_ADAPTER};
        float[][] mixed;
        try (var assigned = lora.rows(adapters)) {
            mixed = DemoModel.logits(lora.base(), rows);
        }
        for (int i = 0; i < rows.length; i++) {
            long[] row = rows[i];
            float[] alone = model.with(adapters[i], () -> DemoModel.logits(lora.base(), row))[0];
            float[] bare = model.with(DemoModel.NO_ADAPTER, () -> DemoModel.logits(lora.base(), row))[0];
            double bar = 8 * epsilon(lora.base()) * DemoModel.largest(alone);
            double difference = DemoModel.difference(mixed[i], alone);
            double effect = DemoModel.difference(alone, bare);
            boolean used = adapters[i].equals(DemoModel.NO_ADAPTER) || effect > 2 * bar;
            String name = adapters[i].equals(DemoModel.NO_ADAPTER) ? BASE : adapters[i];
            check(
                    "row " + (i + 1) + " of the batch equals " + name + " alone",
                    difference <= bar && used,
                    "logits differ by %.4f (bar %.2f); the adapter moves them by %.2f",
                    difference,
                    bar,
                    effect);
        }
    }

    private void combine(LoraModel<CausalLM> lora, List<DemoTask> tasks) {
        lora.addWeightedAdapter(List.of(DEFINITIONS, VERSES), List.of(0.7, 0.7), MIX);
        lora.setActive(MIX);
        measure(MIX, lora.base(), tasks);
        for (DemoTask task : tasks) {
            double mixed = summary.loss(MIX, task.name());
            double bare = summary.loss(BASE, task.name());
            check(
                    "the combination helps with " + task.name(),
                    mixed < bare,
                    "held-out loss %.4f, base %.4f",
                    mixed,
                    bare);
        }
    }

    private void mergeAndBack(LoraModel<CausalLM> lora, List<DemoTask> tasks, String before) {
        lora.setActive(DEFINITIONS);
        lora.mergeAdapter(DEFINITIONS);
        String merged = Checksum.of(lora.base());
        measure(MERGED, lora.base(), tasks);
        for (DemoTask task : tasks) {
            double loss = summary.loss(MERGED, task.name());
            double apart = summary.loss(DEFINITIONS, task.name());
            double bar = epsilon(lora.base()) * apart;
            check(
                    "merged, the loss on " + task.name() + " is the same",
                    Math.abs(loss - apart) <= bar,
                    "%.5f, apart %.5f (bar %.4f, as weights are rounded)",
                    loss,
                    apart,
                    bar);
        }
        check("merging changes the weights", !merged.equals(before), "SHA-256 %s", shorten(merged));
        lora.unmergeAdapter();
        String after = Checksum.of(lora.base());
        boolean restored = after.equals(before);
        check(
                "unmerging restores every bit",
                restored,
                "SHA-256 %s, %s",
                after,
                restored ? "as before" : "before " + before);
    }

    private void export(LoraModel<CausalLM> lora, long[][] rows, List<DemoTask> tasks) throws IOException {
        Path folder = settings.out().resolve("merged");
        lora.setActive(DEFINITIONS);
        CausalLM merged;
        try (Terminal.Bar bar = terminal.bar("merging", lora.modelStatus().adapterLayers())) {
            merged = lora.mergeAndUnload(true, (done, total, what) -> bar.step(done, what));
        }
        float[][] expected = DemoModel.logits(merged, rows);
        merged.save(folder);
        try (CausalLM reloaded = CausalLM.load(folder)) {
            double difference = DemoModel.difference(expected, DemoModel.logits(reloaded, rows));
            check("the merged model reloaded gives equal logits", difference == 0, "largest difference %s", difference);
            measure("merged model, reloaded", reloaded, tasks);
        }
    }

    /** A part of the demo. */
    private interface Work {
        void run() throws IOException;
    }

    private void stage(String what, Work work) throws IOException {
        terminal.heading(summary.seconds.size() + 1, STAGES, what);
        long start = System.nanoTime();
        work.run();
        summary.seconds.put(what, (System.nanoTime() - start) / 1e9);
    }

    /** Measures a model on the held-out data of every task. */
    private void measure(String name, CausalLM model, List<DemoTask> tasks) {
        for (DemoTask task : tasks) {
            summary.loss(name, task.name(), Trainer.evaluate(model, task.heldOut(), options));
            terminal.line("  %-24s on %-12s held-out loss %.4f", name, task.name(), summary.loss(name, task.name()));
        }
    }

    private void check(String name, boolean passed, String detail, Object... arguments) {
        var check = new Summary.Check(name, passed, String.format(Locale.ROOT, detail, arguments));
        summary.checks.add(check);
        terminal.line("  %s: %s (%s)", passed ? "ok" : "FAILED", name, check.detail());
    }

    private void print() {
        terminal.line("");
        summary.lossTable().forEach(line -> terminal.line("%s", line));
        terminal.line("");
        summary.checkTable().forEach(line -> terminal.line("%s", line));
        terminal.line("");
        long failed = summary.checks.stream().filter(check -> !check.passed()).count();
        terminal.line("%d checks, %d failed, %.0f s", summary.checks.size(), failed, summary.totalSeconds());
    }

    private LoraConfig config() {
        return LoraConfig.builder()
                .r(settings.rank())
                .loraAlpha(2 * settings.rank())
                .targetModules("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
                .taskType(TaskType.CAUSAL_LM)
                .build();
    }

    private Path adapterFolder(String name) {
        return settings.out().resolve("adapters").resolve(name);
    }

    /** The relative error of one rounding to a model's type, times two. */
    private static double epsilon(CausalLM model) {
        return switch (model.dtype()) {
            case BFloat16 -> 0x1p-8;
            case Half -> 0x1p-11;
            default -> 0x1p-24;
        };
    }

    private static String shorten(String digest) {
        return digest.substring(0, 16) + "...";
    }

    /** The weights of a model; one that two layers share counts once. */
    private static long countWeights(CausalLM model) {
        try (PointerScope scope = new PointerScope()) {
            TensorVector parameters = model.parameters();
            Map<Long, Long> sizes = new HashMap<>();
            for (long i = 0; i < parameters.size(); i++) {
                sizes.put(
                        parameters.get(i).data_ptr().address(),
                        parameters.get(i).numel());
            }
            return sizes.values().stream().mapToLong(Long::longValue).sum();
        }
    }
}
