package org.lora4j.model.causal;

import static org.bytedeco.pytorch.global.torch.arange;

import java.util.Arrays;
import java.util.Set;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.LongPointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.LongOptional;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.jspecify.annotations.Nullable;
import org.lora4j.model.LoraModel;

/** Continues a batch of prompts, token by token, with a cache. Prompts are padded on the left. */
final class Generator {
    private final CausalLM model;
    private final GenerationOptions options;
    private final TokenListener listener;
    private final Set<Long> ends;

    Generator(CausalLM model, GenerationOptions options, TokenListener listener) {
        this.model = model;
        this.options = options;
        this.listener = listener;
        this.ends = options.eosTokenIds() != null
                ? options.eosTokenIds()
                : Set.copyOf(model.config().eosTokenIds());
    }

    long[][] run(long[][] prompts) {
        int width = check(prompts);
        if (prompts.length == 0) {
            return new long[0][];
        }
        Row[] rows = new Row[prompts.length];
        for (int i = 0; i < rows.length; i++) {
            rows[i] = new Row(i, prompts[i]);
        }
        boolean padded = Arrays.stream(prompts).anyMatch(p -> p.length < width);
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard();
                KvCache cache = model.newCache(width + options.maxNewTokens())) {
            Tensor seen = padded ? seen(prompts, width) : null;
            long[] ids = leftPadded(prompts, width);
            Tensor prompt = Tensor.create(ids, rows.length, width);
            Tensor visible = seen == null ? null : seen.narrow(1, 0, width).cpu();
            try (LoraModel.Scope pass = model.begin(prompt, visible, null)) {
                steps(ids, width, seen, cache, rows);
            }
        }
        return Arrays.stream(rows)
                .map(row -> Arrays.copyOf(row.tokens, row.count))
                .toArray(long[][]::new);
    }

    private void steps(long[] prompts, int width, @Nullable Tensor seen, KvCache cache, Row[] rows) {
        long[] ids = prompts;
        int columns = width;
        for (int step = 0; step < options.maxNewTokens(); step++) {
            try (PointerScope inner = new PointerScope()) {
                ids = step(ids, columns, seen, cache, rows);
            }
            columns = 1;
            if (Arrays.stream(rows).allMatch(row -> row.done)) {
                break;
            }
        }
    }

    /** One pass over {@code columns} tokens of each row; gives the next token of each. */
    private long[] step(long[] ids, int columns, @Nullable Tensor seen, KvCache cache, Row[] rows) {
        Tensor input = Tensor.create(ids, rows.length, columns).to(model.device(), ScalarType.Long);
        Tensor visible = seen == null ? null : seen.narrow(1, 0, cache.length() + columns);
        Tensor hidden = model.hiddenUnchecked(input, visible, cache).narrow(1, columns - 1, 1);
        Tensor logits = model.lm_head.forward(hidden).reshape(rows.length, -1);
        long[] next = new long[rows.length];
        if (!options.sample() && options.repetitionPenalty() == 1) {
            Tensor best = logits.argmax(new LongOptional(1), false).cpu();
            new LongPointer(best.data_ptr_long()).get(next);
        } else {
            float[] flat = new float[Math.toIntExact(logits.numel())];
            new FloatPointer(logits.to(ScalarType.Float).cpu().contiguous().data_ptr_float()).get(flat);
            int vocab = flat.length / rows.length;
            for (Row row : rows) {
                if (!row.done) {
                    next[row.index] =
                            row.sampler.next(Arrays.copyOfRange(flat, row.index * vocab, (row.index + 1) * vocab));
                }
            }
        }
        for (Row row : rows) {
            row.add(next[row.index]);
        }
        return next;
    }

    /** A prompt and what has been added to it. A row that is done goes on with the batch, unheard. */
    private final class Row {
        final int index;
        final Sampler sampler;
        long[] tokens = new long[16];
        int count;
        boolean done;

        Row(int index, long[] prompt) {
            this.index = index;
            this.sampler = new Sampler(options, index, prompt);
        }

        void add(long token) {
            if (done) {
                return;
            }
            if (count == tokens.length) {
                tokens = Arrays.copyOf(tokens, 2 * count);
            }
            tokens[count++] = token;
            done = ends.contains(token);
            listener.onToken(index, token);
        }
    }

    private int check(long[][] prompts) {
        int width = 0;
        for (int i = 0; i < prompts.length; i++) {
            if (prompts[i].length == 0) {
                throw new IllegalArgumentException(
                        "prompt " + i + " is empty: begin it with a token, such as the beginning of text");
            }
            for (long token : prompts[i]) {
                if (token < 0 || token >= model.config().vocabSize()) {
                    throw new IllegalArgumentException("prompt " + i + " holds token " + token
                            + ", but the model has tokens 0 to "
                            + (model.config().vocabSize() - 1)
                            + ": use the tokenizer that belongs to the model");
                }
            }
            width = Math.max(width, prompts[i].length);
        }
        return width;
    }

    private static long[] leftPadded(long[][] prompts, int width) {
        long[] ids = new long[prompts.length * width];
        for (int i = 0; i < prompts.length; i++) {
            System.arraycopy(prompts[i], 0, ids, (i + 1) * width - prompts[i].length, prompts[i].length);
        }
        return ids;
    }

    /** True where a token is no padding, for all tokens there can be: bool (B, width + maxNewTokens). */
    private Tensor seen(long[][] prompts, int width) {
        long[] first = Arrays.stream(prompts).mapToLong(p -> width - p.length).toArray();
        return arange(new Scalar((long) width + options.maxNewTokens()))
                .to(ScalarType.Long)
                .ge(Tensor.create(first, first.length, 1))
                .to(model.device(), ScalarType.Bool);
    }
}
