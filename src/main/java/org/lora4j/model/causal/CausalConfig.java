package org.lora4j.model.causal;

import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * The shape of a decoder-only language model: what config.json of a Hugging Face checkpoint says.
 *
 * <p>Read one with {@link #read(Path)} or {@link #parse(String)}; absent fields take the defaults of transformers 5.17
 * for the model type. A setting lora4j does not have is an error that names it.
 *
 * @param family the architecture
 * @param vocabSize number of tokens
 * @param hiddenSize width of the residual stream
 * @param intermediateSize inner width of the feed-forward block
 * @param layers number of decoder layers
 * @param heads number of query heads
 * @param kvHeads number of key and value heads; divides {@code heads}
 * @param headDim width of one head, even
 * @param activation the feed-forward activation
 * @param rmsNormEps added to the mean square before the root
 * @param attentionInputBias whether q_proj, k_proj and v_proj have biases
 * @param attentionOutputBias whether o_proj has a bias
 * @param mlpBias whether gate_proj, up_proj and down_proj have biases
 * @param qkNorm whether queries and keys are normalised per head (Qwen3)
 * @param tieWordEmbeddings whether lm_head uses the weight of embed_tokens
 * @param maxPositions {@code max_position_embeddings}; longer inputs are computed all the same, as in transformers
 * @param rope rotary position embeddings
 * @param slidingWindow a token of a sliding layer sees itself and the {@code slidingWindow - 1} tokens before it; 0 if no
 *     layer slides
 * @param slidingLayers for each layer whether it slides
 * @param attentionDropout probability of dropping an attention weight in training mode
 * @param bosTokenId first token of a text, if there is one
 * @param eosTokenIds tokens that end a text
 * @param padTokenId filler token, if there is one
 */
public record CausalConfig(
        Family family,
        int vocabSize,
        int hiddenSize,
        int intermediateSize,
        int layers,
        int heads,
        int kvHeads,
        int headDim,
        Activation activation,
        double rmsNormEps,
        boolean attentionInputBias,
        boolean attentionOutputBias,
        boolean mlpBias,
        boolean qkNorm,
        boolean tieWordEmbeddings,
        int maxPositions,
        RopeScaling rope,
        int slidingWindow,
        List<Boolean> slidingLayers,
        double attentionDropout,
        @Nullable Long bosTokenId,
        List<Long> eosTokenIds,
        @Nullable Long padTokenId) {

    public CausalConfig {
        positive("vocab_size", vocabSize);
        positive("hidden_size", hiddenSize);
        positive("intermediate_size", intermediateSize);
        positive("num_hidden_layers", layers);
        positive("num_attention_heads", heads);
        positive("num_key_value_heads", kvHeads);
        positive("head_dim", headDim);
        positive("max_position_embeddings", maxPositions);
        require(
                heads % kvHeads == 0,
                "num_key_value_heads",
                kvHeads,
                "a divisor of num_attention_heads (" + heads + ")");
        require(headDim % 2 == 0, "head_dim", headDim, "even, since rotary embeddings turn pairs");
        require(rmsNormEps > 0 && rmsNormEps < 1, "rms_norm_eps", rmsNormEps, "between 0 and 1");
        require(
                attentionDropout >= 0 && attentionDropout < 1,
                "attention_dropout",
                attentionDropout,
                "at least 0 and less than 1");
        slidingLayers = List.copyOf(slidingLayers);
        require(
                slidingLayers.size() == layers,
                "layer_types",
                slidingLayers.size() + " entries",
                "one entry for each of the " + layers + " layers");
        require(slidingWindow >= 0, "sliding_window", slidingWindow, "at least 1, or null for none");
        require(
                slidingWindow > 0 || !slidingLayers.contains(true),
                "sliding_window",
                "absent",
                "set, since layer_types names sliding_attention (Qwen models also need use_sliding_window true)");
        eosTokenIds = List.copyOf(eosTokenIds);
    }

    /**
     * Reads config.json of a checkpoint folder, and the special tokens from generation_config.json if that names them.
     *
     * @throws IOException if config.json cannot be read or is not JSON
     * @throws IllegalArgumentException naming file, field, value and rule
     */
    public static CausalConfig read(Path folder) throws IOException {
        return ConfigReader.read(folder);
    }

    /**
     * Reads the text of a config.json.
     *
     * @throws IllegalArgumentException naming field, value and rule
     */
    public static CausalConfig parse(String json) {
        return ConfigReader.parse(json);
    }

    /** The same for a stack of layers that repeats these. */
    CausalConfig withLayers(List<Integer> sources) {
        return new CausalConfig(
                family,
                vocabSize,
                hiddenSize,
                intermediateSize,
                sources.size(),
                heads,
                kvHeads,
                headDim,
                activation,
                rmsNormEps,
                attentionInputBias,
                attentionOutputBias,
                mlpBias,
                qkNorm,
                tieWordEmbeddings,
                maxPositions,
                rope,
                slidingWindow,
                sources.stream().map(slidingLayers::get).toList(),
                attentionDropout,
                bosTokenId,
                eosTokenIds,
                padTokenId);
    }

    /** Width of all query heads together. */
    int queryWidth() {
        return heads * headDim;
    }

    /** Width of all key heads together. */
    int keyWidth() {
        return kvHeads * headDim;
    }

    private static void positive(String field, long value) {
        require(value >= 1, field, value, "at least 1");
    }

    static void require(boolean ok, String field, Object value, String rule) {
        if (!ok) {
            throw new IllegalArgumentException(field + " is " + value + " but must be " + rule);
        }
    }
}
