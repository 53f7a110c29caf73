package org.lora4j.cli;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.function.Supplier;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.model.LoraModel;
import org.lora4j.model.causal.CausalLM;
import org.lora4j.model.causal.GenerationOptions;
import org.lora4j.model.causal.Tokenizer;

/** The demo's model with its adapters, and what the demo measures on it. */
final class DemoModel {
    /** Stands for no adapter. */
    static final String NO_ADAPTER = LoraModel.BASE;

    private static final GenerationOptions WRITING =
            GenerationOptions.sampled(40, 1).withTemperature(0.7).withTopP(0.9);

    private final CausalLM base;
    private final LoraModel<CausalLM> lora;
    private final Tokenizer tokenizer;

    DemoModel(LoraModel<CausalLM> lora, Tokenizer tokenizer) {
        this.base = lora.base();
        this.lora = lora;
        this.tokenizer = tokenizer;
    }

    /** Computes something with one adapter active, or with none for {@link #NO_ADAPTER}. */
    <T> T with(String adapter, Supplier<T> work) {
        if (adapter.equals(NO_ADAPTER)) {
            try (var off = lora.disabled()) {
                return work.get();
            }
        }
        lora.setActive(adapter);
        return work.get();
    }

    /** What the model writes after a prompt, drawn with a fixed seed, up to its end token or 40 tokens. */
    String write(String prompt) {
        long[][] prompts = {tokenizer.encode(prompt, true)};
        return tokenizer.decode(base.generate(prompts, WRITING)[0], true);
    }

    /** Equally long starts of held-out texts, one a task and one more, as token ids (3, T). */
    static long[][] rows(List<DemoTask> tasks, Tokenizer tokenizer) {
        List<long[]> texts = new ArrayList<>();
        for (int i = 0; i < 3; i++) {
            var example = tasks.get(i % tasks.size()).examples().get(i);
            texts.add(tokenizer.encode(example.prompt() + example.completion(), true));
        }
        int length = texts.stream().mapToInt(text -> text.length).min().orElseThrow();
        return texts.stream().map(text -> Arrays.copyOf(text, length)).toArray(long[][]::new);
    }

    /** The logits of equally long rows, one array a row. */
    static float[][] logits(CausalLM model, long[]... rows) {
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            long[] ids = Arrays.stream(rows).flatMapToLong(Arrays::stream).toArray();
            Tensor logits = model.forward(Tensor.create(ids, rows.length, rows[0].length))
                    .to(ScalarType.Float);
            float[][] values = new float[rows.length][];
            for (int row = 0; row < rows.length; row++) {
                values[row] = new float[(int) (logits.numel() / rows.length)];
                new FloatPointer(logits.get(row).contiguous().data_ptr()).get(values[row]);
            }
            return values;
        }
    }

    /** The largest difference between two arrays of logits; not a number if one of them holds none. */
    static double difference(float[] a, float[] b) {
        if (a.length != b.length) {
            throw new IllegalArgumentException("logits of " + a.length + " and " + b.length + " numbers");
        }
        double largest = 0;
        for (int i = 0; i < a.length; i++) {
            largest = Math.max(largest, Math.abs((double) a[i] - b[i]));
        }
        return largest;
    }

    /** The largest difference between two batches of logits. */
    static double difference(float[][] a, float[][] b) {
        double largest = 0;
        for (int row = 0; row < a.length; row++) {
            largest = Math.max(largest, difference(a[row], b[row]));
        }
        return largest;
    }

    /** The largest magnitude in an array of logits. */
    static double largest(float[] logits) {
        return difference(logits, new float[logits.length]);
    }
}
