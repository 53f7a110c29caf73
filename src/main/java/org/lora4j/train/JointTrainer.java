package org.lora4j.train;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Generator;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.jspecify.annotations.Nullable;
import org.lora4j.layer.LivePasses;
import org.lora4j.model.LoraModel;
import org.lora4j.model.causal.CausalLM;
import org.lora4j.ops.Tensors;

/**
 * Trains several adapters of one model at once: each step is one pass over a batch that has rows of every job. A small batch
 * leaves most of a machine idle in the frozen layers; together the jobs fill it.
 *
 * <p>Each job has its data, optimizer, schedule, evaluation, early stop and checkpoints, and ends with the adapter it would
 * have trained alone, but for rounding. With dropout that holds if its batches are not padded further beside those of
 * others. A job that ends leaves the batch; one that fails does too, and the others go on.
 */
public final class JointTrainer {
    private final LoraModel<CausalLM> model;
    private final List<Job> jobs;

    /**
     * What one adapter learns.
     *
     * @param adapter its name in the model
     * @param heldOut data to evaluate on, or null
     * @param options without packing and accumulation
     */
    public record Job(
            String adapter, Dataset data, @Nullable Dataset heldOut, TrainOptions options, TrainListener listener) {}

    /** A job under way. */
    private record Running(Job job, JobObjective objective, Run<Sample> run, Generator generator) {}

    /** The rows of a job in a batch. */
    private record Share(Running running, int from, List<Sample> samples) {}

    /**
     * @throws IllegalArgumentException if there is no job, two have one adapter, or options do not fit
     */
    public JointTrainer(LoraModel<CausalLM> model, List<Job> jobs) {
        if (jobs.isEmpty()) {
            throw new IllegalArgumentException("there are no jobs: give at least one");
        }
        List<String> names = jobs.stream().map(Job::adapter).toList();
        for (Job job : jobs) {
            if (Collections.frequency(names, job.adapter()) > 1) {
                throw new IllegalArgumentException(
                        "two jobs train adapter \"" + job.adapter() + "\": give each an adapter of its own");
            }
            if (job.options().packing() || job.options().accumulation() > 1) {
                throw new IllegalArgumentException("job \"" + job.adapter()
                        + "\" has packing or accumulation, which jobs" + " that share a batch cannot: switch them off");
            }
            model.adapter(job.adapter());
        }
        this.model = model;
        this.jobs = List.copyOf(jobs);
    }

    /**
     * Trains all jobs to their ends. The adapters active before are active again afterwards.
     *
     * @return the result of each job that ended, by adapter
     * @throws IllegalStateException after all others have ended, if jobs failed, naming each and why
     */
    public Map<String, TrainResult> train() {
        List<String> before = model.activeAdapters();
        jobs.forEach(job -> model.setTrainable(job.adapter(), true));
        model.setActive(jobs.stream().map(Job::adapter).toArray(String[]::new));
        List<Running> all = new ArrayList<>();
        Map<String, TrainResult> results = new LinkedHashMap<>();
        List<String> failures = new ArrayList<>();
        try {
            jobs.forEach(job -> all.add(start(job)));
            List<Running> live = new ArrayList<>(all);
            model.base().train(true);
            while (!live.isEmpty()) {
                live.removeIf(each -> {
                    if (each.run().done()) {
                        results.put(each.job().adapter(), each.run().result());
                    }
                    return each.run().done();
                });
                if (!live.isEmpty()) {
                    step(live, failures);
                }
            }
        } finally {
            LivePasses.release();
            model.base().eval();
            for (Running each : all) {
                each.run().close();
                model.training().dropoutGenerator(each.job().adapter(), null);
                each.generator().close();
            }
            model.setActive(before.toArray(new String[0]));
        }
        if (!failures.isEmpty()) {
            throw new IllegalStateException(failures.size() + " of " + jobs.size() + " jobs failed: "
                    + String.join("; ", failures) + ". The others ended: " + results.keySet());
        }
        return results;
    }

    private Running start(Job job) {
        TrainOptions options = job.options();
        JobObjective objective = new JobObjective(model, job.adapter(), options);
        Path output = options.output();
        Checkpoints checkpoints =
                output == null ? null : new Checkpoints(output, folder -> model.save(folder, job.adapter()));
        Run<Sample> run = new Run<>(
                objective,
                ParameterGroup.of(List.of(model.adapter(job.adapter())), options.loraPlusRatio()),
                options,
                World.ALONE,
                checkpoints,
                job.data().samples(),
                job.heldOut() == null ? null : job.heldOut().samples(),
                job.listener());
        Generator generator = Tensors.keep(torch.createCPUGenerator(0));
        model.training().dropoutGenerator(job.adapter(), generator);
        return new Running(job, objective, run, generator);
    }

    private void step(List<Running> live, List<String> failures) {
        List<Share> shares = new ArrayList<>();
        List<Sample> samples = new ArrayList<>();
        List<String> names = new ArrayList<>();
        for (Running each : live) {
            Run<Sample> run = each.run();
            each.generator().set_current_seed(Loop.seed(run.options().seed(), run.step(), 0));
            int maxLength = run.options().maxLength();
            List<Sample> own =
                    run.begin().stream().map(sample -> sample.cut(maxLength)).toList();
            shares.add(new Share(each, samples.size(), own));
            samples.addAll(own);
            own.forEach(sample -> names.add(each.job().adapter()));
        }
        double[] sums = new double[shares.size()];
        Memory.explained(live.get(0).run(), samples.size(), () -> {
            pass(shares, samples, names, sums);
            return 0;
        });
        for (int i = 0; i < sums.length; i++) {
            Share share = shares.get(i);
            try {
                share.running().run().end(sums[i], share.running().objective().weight(share.samples()));
            } catch (IllegalStateException e) {
                failures.add(share.running().job().adapter() + ": " + e.getMessage());
                live.remove(share.running());
            }
        }
    }

    private void pass(List<Share> shares, List<Sample> samples, List<String> names, double[] sums) {
        try (PointerScope scope = new PointerScope()) {
            Batch batch = Batch.of(samples, Integer.MAX_VALUE);
            Tensor hidden;
            try (LoraModel.Scope rows = model.rows(names.toArray(new String[0]))) {
                hidden = model.base().hidden(batch.ids(), null, null);
            }
            Tensor joined = null;
            for (int i = 0; i < sums.length; i++) {
                Share share = shares.get(i);
                long weight = Math.max(1, share.running().objective().weight(share.samples()));
                ChunkedLoss.Rows rows = ChunkedLoss.Rows.of(
                        hidden.narrow(0, share.from(), share.samples().size()),
                        batch.labels().narrow(0, share.from(), share.samples().size()));
                Tensor gradient = torch.zeros_like(rows.hidden().detach());
                Tensor scale = torch.scalar_tensor(new Scalar(1.0 / weight)).to(gradient.device(), ScalarType.Float);
                sums[i] = share.running().objective().gradient(rows, scale, gradient);
                // A sum whose gradient for these rows is exactly the one computed.
                if (rows.hidden().requires_grad() && Double.isFinite(sums[i])) {
                    Tensor part = rows.hidden().mul(gradient).sum();
                    joined = joined == null ? part : joined.add(part);
                }
            }
            if (joined != null) {
                joined.backward();
            }
        } finally {
            LivePasses.release();
        }
    }
}
