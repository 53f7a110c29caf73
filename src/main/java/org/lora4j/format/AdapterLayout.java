package org.lora4j.format;

import java.util.ArrayList;
import java.util.Collection;
import java.util.EnumSet;
import java.util.List;
import java.util.Set;

/** The ways in which programs name the tensors of a LoRA adapter in a file. */
public enum AdapterLayout {
    /** {@code base_model.model.<path>.lora_A.weight}: PEFT. */
    PEFT,
    /** {@code lora_unet_<path with underscores>.lora_down.weight}: the scripts of kohya-ss and what follows them. */
    KOHYA,
    /** {@code unet.<path>.lora_A.weight} and older spellings: pipelines of diffusers. */
    DIFFUSERS,
    /** {@code blk.0.attn_q.weight.lora_a} in a GGUF file: llama.cpp. */
    GGUF,
    /** None of these, or several at once. */
    UNKNOWN;

    /**
     * The layout of a file with tensors of these names. Names that belong to no layout do not count; they are reported
     * when the file is read.
     */
    public static AdapterLayout of(Collection<String> keys) {
        Set<AdapterLayout> found = EnumSet.noneOf(AdapterLayout.class);
        for (String key : keys) {
            found.add(of(key));
        }
        found.remove(UNKNOWN);
        return found.size() == 1 ? found.iterator().next() : UNKNOWN;
    }

    private static AdapterLayout of(String key) {
        if (key.startsWith(PeftKeys.PREFIX)) {
            return PEFT;
        }
        if (key.endsWith(".weight.lora_a") || key.endsWith(".weight.lora_b")) {
            return GGUF;
        }
        return KohyaKeys.isOne(key) ? KOHYA : DiffusersKeys.isOne(key) ? DIFFUSERS : UNKNOWN;
    }

    /** What names of several layouts, or of none, a file has: for a message. */
    static String describe(Collection<String> keys) {
        List<String> parts = new ArrayList<>();
        for (AdapterLayout layout : values()) {
            List<String> own = keys.stream().filter(key -> of(key) == layout).toList();
            if (!own.isEmpty()) {
                parts.add((layout == UNKNOWN ? "no known layout: " : layout + ": ") + own);
            }
        }
        return String.join("; ", parts);
    }
}
