package org.lora4j.model.causal;

import ai.djl.huggingface.tokenizers.Encoding;
import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.FormatException;

/**
 * The tokenizer of a checkpoint: Hugging Face's own, run in this process from tokenizer.json. Nothing is fetched from the
 * network. Safe for several threads.
 */
public final class Tokenizer implements AutoCloseable {
    static {
        // Read by DJL before it loads its library: no CUDA build from the network, no usage report.
        setIfAbsent("RUST_FLAVOR", "cpu");
        setIfAbsent("OPT_OUT_TRACKING", "true");
        setIfAbsent("ai.djl.offline", "true");
    }

    private final HuggingFaceTokenizer tokenizer;
    private final @Nullable Long bos;
    private final @Nullable Long eos;
    private final @Nullable Long pad;

    private Tokenizer(HuggingFaceTokenizer tokenizer, Path folder) throws IOException {
        this.tokenizer = tokenizer;
        JsonFields settings = optional(folder.resolve("tokenizer_config.json"));
        JsonFields special = optional(folder.resolve("special_tokens_map.json"));
        JsonFields config = optional(folder.resolve("config.json"));
        this.bos = id("bos_token", settings, special, config);
        this.eos = id("eos_token", settings, special, config);
        this.pad = id("pad_token", settings, special, config);
    }

    /**
     * Loads tokenizer.json of a checkpoint.
     *
     * @param folder folder of the checkpoint
     * @throws IOException if the folder has no tokenizer.json or it cannot be understood
     */
    public static Tokenizer load(Path folder) throws IOException {
        Path file = folder.resolve("tokenizer.json");
        if (!Files.isRegularFile(file)) {
            throw new NoSuchFileException(
                    file.toString(),
                    null,
                    "there is none; save the tokenizer beside the model (tokenizer.save_pretrained in transformers)");
        }
        HuggingFaceTokenizer tokenizer;
        try {
            // Whole texts as they are: callers cut and pad.
            tokenizer = HuggingFaceTokenizer.newInstance(file, Map.of("truncation", "false", "padding", "false"));
        } catch (RuntimeException e) {
            throw new FormatException(file + ": is no tokenizer: " + e.getMessage(), e);
        }
        try {
            return new Tokenizer(tokenizer, folder);
        } catch (Throwable failure) {
            tokenizer.close();
            throw failure;
        }
    }

    /**
     * Token ids of a text.
     *
     * @param addSpecialTokens whether to add what the tokenizer puts around a text, such as a beginning
     */
    public long[] encode(String text, boolean addSpecialTokens) {
        Encoding encoding = tokenizer.encode(text, addSpecialTokens, false);
        return encoding.getIds();
    }

    /**
     * The text of token ids.
     *
     * @param skipSpecialTokens whether to leave out beginnings, ends and the like
     */
    public String decode(long[] ids, boolean skipSpecialTokens) {
        return ids.length == 0 ? "" : tokenizer.decode(ids, skipSpecialTokens);
    }

    /** The token a text begins with, or null if the checkpoint names none. */
    public @Nullable Long bosTokenId() {
        return bos;
    }

    /** The token a text ends with, or null if the checkpoint names none. */
    public @Nullable Long eosTokenId() {
        return eos;
    }

    /** The filler token, or null if the checkpoint names none. */
    public @Nullable Long padTokenId() {
        return pad;
    }

    @Override
    public void close() {
        tokenizer.close();
    }

    private static @Nullable JsonFields optional(Path file) throws IOException {
        return Files.isRegularFile(file) ? JsonFields.read(file) : null;
    }

    /** The id of a special token: that of its text in the tokenizer's files, else the one in config.json. */
    private @Nullable Long id(
            String name, @Nullable JsonFields settings, @Nullable JsonFields special, @Nullable JsonFields config) {
        String text = content(settings, name);
        if (text == null) {
            text = content(special, name);
        }
        if (text != null) {
            long[] ids = encode(text, false);
            if (ids.length == 1) {
                return ids[0];
            }
        }
        if (config == null) {
            return null;
        }
        return config.tokenIds(name + "_id").stream().findFirst().orElse(null);
    }

    /** A special token is named by its text or by an object with the text in {@code content}. */
    private static @Nullable String content(@Nullable JsonFields fields, String name) {
        if (fields == null || !fields.isObject(name)) {
            return fields == null ? null : fields.text(name);
        }
        JsonFields token = fields.object(name);
        return token == null ? null : token.text("content");
    }

    private static void setIfAbsent(String property, String value) {
        if (System.getProperty(property) == null) {
            System.setProperty(property, value);
        }
    }
}
