package org.lora4j.model.causal;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** The tensors a checkpoint must hold: names and shapes by configuration, under Hugging Face's names. */
final class Parameters {
    static final String EMBEDDING = "model.embed_tokens.weight";
    static final String HEAD = "lm_head.weight";
    private static final int LISTED = 20;

    private final Map<String, long[]> shapes = new LinkedHashMap<>();

    private Parameters() {}

    /** All parameters of a model, lm_head.weight included. */
    static Map<String, long[]> of(CausalConfig config) {
        Parameters p = new Parameters();
        long hidden = config.hiddenSize();
        long inner = config.intermediateSize();
        p.add(EMBEDDING, config.vocabSize(), hidden);
        for (int i = 0; i < config.layers(); i++) {
            String layer = "model.layers." + i + ".";
            String attention = layer + "self_attn.";
            p.linear(attention + "q_proj", config.queryWidth(), hidden, config.attentionInputBias());
            p.linear(attention + "k_proj", config.keyWidth(), hidden, config.attentionInputBias());
            p.linear(attention + "v_proj", config.keyWidth(), hidden, config.attentionInputBias());
            p.linear(attention + "o_proj", hidden, config.queryWidth(), config.attentionOutputBias());
            if (config.qkNorm()) {
                p.add(attention + "q_norm.weight", config.headDim());
                p.add(attention + "k_norm.weight", config.headDim());
            }
            p.linear(layer + "mlp.gate_proj", inner, hidden, config.mlpBias());
            p.linear(layer + "mlp.up_proj", inner, hidden, config.mlpBias());
            p.linear(layer + "mlp.down_proj", hidden, inner, config.mlpBias());
            p.add(layer + "input_layernorm.weight", hidden);
            p.add(layer + "post_attention_layernorm.weight", hidden);
        }
        p.add("model.norm.weight", hidden);
        p.add(HEAD, config.vocabSize(), hidden);
        return p.shapes;
    }

    private void linear(String path, long out, long in, boolean bias) {
        add(path + ".weight", out, in);
        if (bias) {
            add(path + ".bias", out);
        }
    }

    private void add(String name, long... shape) {
        shapes.put(name, shape);
    }

    /**
     * Compares a checkpoint with what its configuration asks for.
     *
     * @param where the checkpoint, for the message
     * @throws IllegalArgumentException listing all missing, unexpected and misshapen tensors
     */
    static void check(CausalConfig config, Map<String, long[]> found, String where) {
        Map<String, long[]> wanted = of(config);
        List<String> missing = new ArrayList<>();
        List<String> misshapen = new ArrayList<>();
        wanted.forEach((name, shape) -> {
            long[] given = found.get(name);
            if (given == null) {
                if (!(name.equals(HEAD) && config.tieWordEmbeddings())) {
                    missing.add(name);
                }
            } else if (!Arrays.equals(given, shape)) {
                misshapen.add(name + " is " + Arrays.toString(given) + ", not " + Arrays.toString(shape));
            }
        });
        List<String> unexpected = found.keySet().stream()
                .filter(name -> !wanted.containsKey(name) && !ignored(name))
                .sorted()
                .toList();
        if (!missing.isEmpty() || !misshapen.isEmpty() || !unexpected.isEmpty()) {
            throw new IllegalArgumentException("the tensors of " + where + " do not fit its config.json ("
                    + config.family().modelType() + ", " + config.layers() + " layers): "
                    + String.join(
                            "; ",
                            listing("missing", missing),
                            listing("misshapen", misshapen),
                            listing("unexpected", unexpected))
                    + ". Check that config.json and the weights come from the same model.");
        }
    }

    /** Buffers that old checkpoints hold and that follow from the configuration. */
    private static boolean ignored(String name) {
        return name.endsWith("rotary_emb.inv_freq");
    }

    private static String listing(String what, List<String> items) {
        if (items.isEmpty()) {
            return "no " + what;
        }
        String more = items.size() > LISTED ? " and " + (items.size() - LISTED) + " more" : "";
        return items.size() + " " + what + ": " + String.join(", ", items.subList(0, Math.min(LISTED, items.size())))
                + more;
    }
}
