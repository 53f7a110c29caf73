package org.lora4j.model.causal;

import static org.bytedeco.pytorch.global.torch.cross_entropy_loss;

import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.bytedeco.javacpp.Pointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Device;
import org.bytedeco.pytorch.LinearImpl;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.jspecify.annotations.Nullable;
import org.lora4j.model.LoraModel;
import org.lora4j.model.PretrainedModel;
import org.lora4j.model.ReplicableLayers;
import org.lora4j.model.TokenSource;
import org.lora4j.ops.Tensors;

/**
 * A decoder-only language model of the Llama, Mistral, Qwen2 or Qwen3 kind, loaded from a Hugging Face checkpoint.
 *
 * <p>The modules have Hugging Face's paths ({@code model.layers.0.self_attn.q_proj}, {@code lm_head}), so an adapter made
 * for the checkpoint fits. Loaded parameters are frozen ({@code requires_grad} false) and the model is in evaluation mode:
 * the usual state for adapters; call {@code train(true)} and {@code requires_grad_(true)} for other uses.
 *
 * <p>Weights are mapped, and JavaCPP counts them: for models beyond four times the Java heap call
 * {@link org.lora4j.ops.LibTorch#load()} before anything else of LibTorch, this class included, or start Java with
 * {@code -Dorg.bytedeco.javacpp.maxPhysicalBytes=0}.
 *
 * <p>{@code forward} may be called from several threads. Tensors it returns belong to the caller's {@code PointerScope}. The
 * model itself belongs to no scope: close it to free it.
 */
public final class CausalLM extends Module implements PretrainedModel, TokenSource, ReplicableLayers {
    /** The label of a token that does not count in {@link #loss}. */
    public static final long IGNORED = -100;

    private static final long SHARD_BYTES = 5_000_000_000L;

    Decoder model;
    LinearImpl lm_head;
    private CausalConfig config;
    private final Handles handles;
    /** Those of layers that repeat others. */
    private final List<Handles> replicas = new ArrayList<>();

    private final Path source;
    private @Nullable Listener listener;

    CausalLM(CausalConfig config, Path source) {
        super("CausalLM");
        this.config = config;
        this.source = source;
        this.handles = new Handles();
        Tensors.keep(this);
        Leaves leaves = new Leaves(handles);
        model = register_module("model", new Decoder(config, leaves));
        lm_head = register_module("lm_head", leaves.linear(config.hiddenSize(), config.vocabSize(), false));
    }

    /**
     * Loads a checkpoint in the type of its tensors. The weights stay in the mapped files until they are written to, and
     * writing to them never reaches the files.
     *
     * @param folder folder with config.json and model.safetensors or its shards
     * @throws IllegalArgumentException if config.json asks for something lora4j does not have, if the tensors do not fit it
     *     (all of them are listed) or if they are of several types
     * @throws IOException if a file cannot be read or is defective
     */
    public static CausalLM load(Path folder) throws IOException {
        return CausalFiles.load(folder, null);
    }

    /**
     * Loads a checkpoint and converts its tensors.
     *
     * @param folder folder with config.json and model.safetensors or its shards
     * @param type Float, Double, BFloat16 or Half
     * @throws IllegalArgumentException as for {@link #load(Path)}, or if {@code type} is another
     * @throws IOException if a file cannot be read or is defective
     */
    public static CausalLM load(Path folder, ScalarType type) throws IOException {
        return CausalFiles.load(folder, type);
    }

    /**
     * Writes the model as a checkpoint of Hugging Face: its parameters as they are now, config.json, and the tokenizer's
     * files and generation_config.json from the folder it was loaded from. A tied head is written once, as the embedding.
     *
     * @param folder a folder without a checkpoint; made if it is not there
     * @throws IOException if a file cannot be read or written
     */
    public void save(Path folder) throws IOException {
        save(folder, SHARD_BYTES);
    }

    /** As {@link #save(Path)}, with at most {@code maxShardBytes} bytes of tensors in one file. */
    public void save(Path folder, long maxShardBytes) throws IOException {
        CausalFiles.save(this, folder, maxShardBytes);
    }

    @Override
    public int layerCount() {
        return config.layers();
    }

    @Override
    public LoraModel.Scope replicateLayers(List<Integer> sources) {
        CausalConfig before = config;
        List<DecoderLayer> own = List.copyOf(model.layers);
        CausalConfig next = before.withLayers(sources);
        Handles added = new Handles();
        replicas.add(added);
        try (PointerScope scope = new PointerScope()) {
            List<DecoderLayer> stack = new ArrayList<>();
            for (int source : sources) {
                DecoderLayer copy = new DecoderLayer(next, stack.size(), new Leaves(added));
                ReplicableLayers.share(own.get(source), copy);
                stack.add(copy);
            }
            model.layers(stack);
        }
        config = next;
        return () -> {
            model.layers(own);
            config = before;
            replicas.remove(added);
            added.close();
        };
    }

    /** What config.json says, but for the layers after {@link #replicateLayers}. */
    public CausalConfig config() {
        return config;
    }

    /** The folder the model was loaded from. */
    public Path source() {
        return source;
    }

    /** The type of the weights, and of the logits. */
    public ScalarType dtype() {
        return Tensors.type(model.embed_tokens.weight());
    }

    /**
     * Logits of every token.
     *
     * @param inputIds int64 (B, T)
     * @return (B, T, vocabSize), in the model's type
     */
    public Tensor forward(Tensor inputIds) {
        return forward(inputIds, null, null);
    }

    /**
     * Logits of every token of this pass.
     *
     * @param inputIds int64 (B, T); with a cache the tokens that follow those in it
     * @param attentionMask (B, cached + T), 0 at padding, or null if there is none; positions count from a row's first
     *     token that is no padding, as in Hugging Face's {@code generate}, and logits at padding mean nothing
     * @param cache keys and values of the tokens before, to which this pass adds its own; or null
     * @return (B, T, vocabSize), in the model's type
     * @throws IllegalArgumentException naming the argument, if a shape or type does not fit
     */
    public Tensor forward(Tensor inputIds, @Nullable Tensor attentionMask, @Nullable KvCache cache) {
        Tensor seen = check(inputIds, attentionMask, cache);
        try (LoraModel.Scope pass = begin(inputIds, seen, cache)) {
            return lm_head.forward(model.forward(inputIds, seen, cache));
        }
    }

    /**
     * Hidden states of some tokens of several sequences whose keys and values are in pages, after the final norm. Runs
     * without gradients. On the CPU, with the native operations, a token's bits are the same whatever else is in the batch
     * and however its prompt was divided into batches, if those of the linear layers are.
     *
     * @param batch the tokens; ids must be those of the model, pages those of the cache
     * @return (outputs, 1, hiddenSize), for {@link #head}
     * @throws IllegalArgumentException if a page is not in the cache
     */
    public Tensor hidden(PagedBatch batch, PagedCache cache) {
        try (NoGradGuard guard = new NoGradGuard()) {
            Tensor hidden = model.forward(batch, cache);
            long[] outputs =
                    java.util.Arrays.stream(batch.outputs()).asLongStream().toArray();
            return hidden.index_select(0, Tensor.create(outputs).to(hidden.device(), ScalarType.Long));
        }
    }

    /**
     * Logits of hidden states. Runs without gradients.
     *
     * @param hidden (N, 1, hiddenSize)
     * @return (N, vocabSize), in the model's type
     */
    public Tensor head(Tensor hidden) {
        try (NoGradGuard guard = new NoGradGuard()) {
            return lm_head.forward(hidden).flatten(0, 1);
        }
    }

    /**
     * The hidden states lm_head turns into logits, after the final norm. Arguments as for
     * {@link #forward(Tensor, Tensor, KvCache)}.
     *
     * @return (B, T, hiddenSize), in the model's type
     */
    public Tensor hidden(Tensor inputIds, @Nullable Tensor attentionMask, @Nullable KvCache cache) {
        Tensor seen = check(inputIds, attentionMask, cache);
        try (LoraModel.Scope pass = begin(inputIds, seen, cache)) {
            return model.forward(inputIds, seen, cache);
        }
    }

    /**
     * The hidden states of several texts in each row, which do not see each other: positions start anew with each text.
     *
     * @param inputIds int64 (B, T)
     * @param segments int64 (B, T): a number for each text, the same for its tokens, which follow each other
     * @return (B, T, hiddenSize), in the model's type
     * @throws IllegalArgumentException naming the argument, if a shape or type does not fit
     */
    public Tensor hidden(Tensor inputIds, Tensor segments) {
        check(inputIds, null, null);
        if (segments.dim() != 2
                || Tensors.type(segments) != ScalarType.Long
                || segments.size(0) != inputIds.size(0)
                || segments.size(1) != inputIds.size(1)) {
            throw new IllegalArgumentException("segments must be Long of the shape of inputIds ("
                    + Tensors.describe(inputIds) + "), but is " + Tensors.describe(segments));
        }
        try (LoraModel.Scope pass = begin(inputIds, null, null)) {
            return model.packed(inputIds, segments);
        }
    }

    /**
     * The output layer alone, with its adapters.
     *
     * @param hidden (B, T, hiddenSize), what {@code hidden} returns or some of it
     * @return (B, T, vocabSize)
     */
    public Tensor logits(Tensor hidden) {
        return lm_head.forward(hidden);
    }

    @Override
    public void listener(@Nullable Listener next) {
        this.listener = next;
    }

    /** Tells the listener of a pass. */
    LoraModel.Scope begin(Tensor inputIds, @Nullable Tensor seen, @Nullable KvCache cache) {
        if (listener == null) {
            return () -> {};
        }
        Tensor tokens = inputIds;
        if (seen != null) {
            long before = seen.size(1) - inputIds.size(1);
            tokens = inputIds.masked_fill(
                    seen.narrow(1, before, inputIds.size(1)).logical_not(), new Scalar(-1L));
        }
        return listener.begin(tokens, cache, cache == null || cache.length() == 0);
    }

    /** The mask as bool (B, cached + T), or null if all tokens are seen. */
    private @Nullable Tensor check(Tensor inputIds, @Nullable Tensor attentionMask, @Nullable KvCache cache) {
        if (inputIds.dim() != 2 || Tensors.type(inputIds) != ScalarType.Long || inputIds.size(1) < 1) {
            throw new IllegalArgumentException("inputIds must be Long[B, T] with T >= 1, but is "
                    + Tensors.describe(inputIds) + ": pass token ids");
        }
        if (cache != null && cache.layers() != config.layers()) {
            throw new IllegalArgumentException("the cache is made for " + cache.layers() + " layers, but the model has "
                    + config.layers() + ": use newCache");
        }
        Tensor seen = null;
        if (attentionMask != null) {
            long total = inputIds.size(1) + (cache == null ? 0 : cache.length());
            if (attentionMask.dim() != 2
                    || attentionMask.size(0) != inputIds.size(0)
                    || attentionMask.size(1) != total) {
                throw new IllegalArgumentException("attentionMask must be [" + inputIds.size(0) + ", " + total
                        + "], a value for each token in the cache and in inputIds, but is "
                        + Tensors.describe(attentionMask));
            }
            seen = attentionMask.to(ScalarType.Bool);
            if (seen.all().item_bool()) {
                seen = null;
            }
        }
        return seen;
    }

    /** As {@link #hidden} for arguments known to be right; {@code seen} is bool (B, cached + T) or null. */
    Tensor hiddenUnchecked(Tensor inputIds, @Nullable Tensor seen, KvCache cache) {
        return model.forward(inputIds, seen, cache);
    }

    @Override
    public String modelType() {
        return config.family().modelType();
    }

    /** Whether lm_head uses the memory of the embedding. */
    boolean isTied() {
        try (PointerScope scope = new PointerScope()) {
            return lm_head.weight()
                    .data_ptr()
                    .equals(model.embed_tokens.weight().data_ptr());
        }
    }

    /** The device of the weights. */
    Device device() {
        return model.embed_tokens.weight().device();
    }

    /**
     * Continues prompts. Runs without gradients; memory does not grow with the number of calls.
     *
     * @param prompts token ids, rows of any length of at least 1; a row's continuation does not depend on the other rows
     *     beyond rounding
     * @return for each prompt the tokens that follow it, the end token included if it came
     * @throws IllegalArgumentException if a prompt is empty or holds a token the model does not have
     */
    public long[][] generate(long[][] prompts, GenerationOptions options) {
        return generate(prompts, options, (row, token) -> {});
    }

    /** As {@link #generate(long[][], GenerationOptions)}, and tells of each token when it is there. */
    public long[][] generate(long[][] prompts, GenerationOptions options, TokenListener listener) {
        return new Generator(this, options, listener).run(prompts);
    }

    /**
     * Mean cross entropy of the next token, in float32, differentiable.
     *
     * @param inputIds int64 (B, T), T of at least 2; pad on the right
     * @param labels int64 (B, T): {@code inputIds}, with {@link #IGNORED} where a token does not count. The label at t is
     *     predicted from the tokens before t
     * @return a float32 scalar
     * @throws IllegalArgumentException if a shape does not fit or no label counts
     */
    public Tensor loss(Tensor inputIds, Tensor labels) {
        if (labels.dim() != 2
                || Tensors.type(labels) != ScalarType.Long
                || labels.size(0) != inputIds.size(0)
                || labels.size(1) != inputIds.size(1)
                || labels.size(1) < 2) {
            throw new IllegalArgumentException("labels must have the shape of inputIds (" + Tensors.describe(inputIds)
                    + "), at least 2 tokens a row, but is " + Tensors.describe(labels));
        }
        long before = inputIds.size(1) - 1;
        Tensor next = labels.narrow(1, 1, before).reshape(-1);
        Tensor counted = next.ne(new Scalar(IGNORED)).nonzero().squeeze(1);
        if (counted.size(0) == 0) {
            throw new IllegalArgumentException(
                    "no label counts: labels has only " + IGNORED + " after the first token of each row");
        }
        check(inputIds, null, null);
        Tensor logits;
        try (LoraModel.Scope pass = begin(inputIds, null, null)) {
            Tensor hidden = model.forward(inputIds, null, null);
            if (lm_head.getClass() == LinearImpl.class) {
                logits = lm_head.forward(hidden.narrow(1, 0, before)
                        .reshape(-1, config.hiddenSize())
                        .index_select(0, counted));
            } else {
                // A layer put in place of the head may need whole rows, to give each its adapter from the right token
                // on.
                logits = lm_head.forward(hidden)
                        .narrow(1, 0, before)
                        .reshape(-1, config.vocabSize())
                        .index_select(0, counted);
            }
        }
        return cross_entropy_loss(logits.to(ScalarType.Float), next.index_select(0, counted));
    }

    /** An empty cache for this model with room for {@code tokens} tokens; it grows when they are more. */
    public KvCache newCache(long tokens) {
        return new KvCache(config.layers(), tokens);
    }

    /** Closes a handle with the model. */
    void own(Pointer handle) {
        handles.keep(handle);
    }

    /** Frees the model, whoever still holds a module of it. */
    @Override
    public void close() {
        if (!isNull()) {
            handles.close();
            replicas.forEach(Handles::close);
            super.close();
        }
    }
}
