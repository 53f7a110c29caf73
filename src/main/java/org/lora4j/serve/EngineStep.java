package org.lora4j.serve;

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.jspecify.annotations.Nullable;
import org.lora4j.model.HostModel;
import org.lora4j.model.LoraModel;
import org.lora4j.model.causal.CausalLM;
import org.lora4j.model.causal.PagedBatch;
import org.lora4j.model.causal.PagedCache;

/** Computes steps: what of which request, the pass over the model, and the tokens chosen from its logits. */
final class EngineStep implements AutoCloseable {
    /** What one request gets of a step. */
    static final class Work {
        private final Sequence sequence;
        private final int from;
        private final int count;
        private final boolean decodes;

        /** The token that came of it; null if it was not the end of the prompt. */
        @Nullable
        GeneratedToken result;

        Work(Sequence sequence, int count) {
            this.sequence = sequence;
            this.from = sequence.computed;
            this.count = count;
            this.decodes = sequence.decodes();
        }

        Sequence sequence() {
            return sequence;
        }

        int count() {
            return count;
        }

        /** Whether it continues, rather than computing a prompt. */
        boolean decodes() {
            return decodes;
        }

        private boolean givesToken() {
            return from + count == sequence.length;
        }
    }

    private final HostModel<CausalLM> host;
    private final EngineOptions options;
    private final PagedCache cache;
    private final BatchPlan plan = new BatchPlan();
    private final BatchPlan headPlan = new BatchPlan();
    private float[] logits = new float[0];

    EngineStep(HostModel<CausalLM> host, EngineOptions options) {
        this.host = host;
        this.options = options;
        this.cache = new PagedCache(host.base(), options.pages(), options.pageTokens());
    }

    /** Divides the tokens of a step among requests, in their order. */
    List<Work> plan(List<Sequence> order) {
        List<Work> works = new ArrayList<>();
        int left = options.maxBatchTokens();
        for (Sequence each : order) {
            int count = Math.min(left, each.length - each.computed);
            if (count > 0) {
                works.add(new Work(each, count));
                left -= count;
            }
        }
        return works;
    }

    /** Computes a step and leaves each request's token in its work. */
    void run(List<Work> works, PagePool pages) {
        List<List<BatchPlan.Part>> rows = new ArrayList<>();
        List<List<BatchPlan.Part>> outputRows = new ArrayList<>();
        List<Integer> outputs = new ArrayList<>();
        int total = works.stream().mapToInt(Work::count).sum();
        long[] tokens = new long[total];
        int[] sequences = new int[total];
        int[] positions = new int[total];
        int[][] tables = new int[works.size()][];
        int at = 0;
        for (int w = 0; w < works.size(); w++) {
            Work work = works.get(w);
            Sequence each = work.sequence;
            while (each.pages.size() < pages.pagesFor(work.from + work.count)) {
                each.pages.add(pages.take());
            }
            tables[w] = each.pageArray();
            for (int i = 0; i < work.count; i++) {
                tokens[at] = each.tokens[work.from + i];
                sequences[at] = w;
                positions[at] = work.from + i;
                at++;
            }
            rows.addAll(Collections.nCopies(work.count, each.parts));
            if (work.givesToken()) {
                outputs.add(at - 1);
                outputRows.add(each.parts);
            }
        }
        PagedBatch batch = new PagedBatch(
                tokens,
                sequences,
                positions,
                tables,
                outputs.stream().mapToInt(Integer::intValue).toArray());
        int vocab = compute(batch, rows, outputRows);
        int output = 0;
        for (Work work : works) {
            Sequence each = work.sequence;
            if (work.givesToken()) {
                work.result = each.sampler.next(logits, output * vocab, vocab);
                output++;
            }
            each.computed += work.count;
            if (options.prefixCache()) {
                publish(each, work, pages);
            }
        }
    }

    /** Runs the model; the logits of the outputs are in {@link #logits} then, one row after the other. */
    private int compute(PagedBatch batch, List<List<BatchPlan.Part>> rows, List<List<BatchPlan.Part>> outputRows) {
        CausalLM model = host.base();
        try (PointerScope scope = new PointerScope()) {
            Tensor hidden;
            try (LoraModel.Scope adapters = host.rows(plan.of(rows))) {
                hidden = model.hidden(batch, cache);
            }
            if (outputRows.isEmpty()) {
                return 0;
            }
            Tensor result;
            try (LoraModel.Scope adapters = host.rows(headPlan.of(outputRows))) {
                result = model.head(hidden).to(ScalarType.Float).cpu().contiguous();
            }
            int count = Math.toIntExact(result.numel());
            if (logits.length < count) {
                logits = new float[count];
            }
            new FloatPointer(result.data_ptr_float()).get(logits, 0, count);
            return (int) result.size(1);
        }
    }

    /** Makes the pages that became full known for prompts that begin alike. */
    private void publish(Sequence each, Work work, PagePool pages) {
        int page = options.pageTokens();
        for (int i = work.from / page; i < each.computed / page; i++) {
            int previous = i == 0 ? -1 : each.pages.get(i - 1);
            pages.publish(each.root, previous, each.pages.get(i), each.tokens, i * page);
        }
    }

    @Override
    public void close() {
        cache.close();
    }
}
