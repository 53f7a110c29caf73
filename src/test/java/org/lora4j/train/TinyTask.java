package org.lora4j.train;

import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.bytedeco.pytorch.global.torch;
import org.lora4j.config.LoraConfig;
import org.lora4j.model.Lora;
import org.lora4j.model.LoraModel;
import org.lora4j.model.causal.CausalLM;

/** A random model of three layers and 53 tokens, and a task for it that fits an adapter. */
final class TinyTask {
    static final String NAME = "count";
    static final long EOS = 1;

    static final Path MODEL = Path.of("src/test/resources/golden/models/llama");

    private TinyTask() {}

    /** The random model with a fresh adapter. */
    static LoraModel<CausalLM> model(long seed) throws IOException {
        CausalLM base = CausalLM.load(MODEL);
        torch.manual_seed(seed);
        LoraConfig config = LoraConfig.builder()
                .r(6)
                .loraAlpha(18)
                .loraDropout(0.05)
                .targetModules("q_proj", "v_proj", "o_proj", "up_proj", "down_proj", "lm_head")
                .build();
        return Lora.wrap(base, config, NAME);
    }

    /** Examples whose prompt is one token n and whose completion counts up from it: n+1, n+2, ... */
    static Dataset counting(int examples, int length) {
        List<Example> texts = new ArrayList<>();
        for (int i = 0; i < examples; i++) {
            var completion = new StringBuilder();
            for (int k = 1; k <= length; k++) {
                completion.append(letter(i * 7 + k));
            }
            texts.add(new Example(letter(i * 7), completion.toString()));
        }
        return Dataset.of(texts, TinyTask::ids, TinyTask::ids, EOS);
    }

    private static String letter(int n) {
        return String.valueOf((char) ('0' + n % 40));
    }

    private static long[] ids(String text) {
        return text.chars().mapToLong(c -> c - '0' + 5).toArray();
    }
}
