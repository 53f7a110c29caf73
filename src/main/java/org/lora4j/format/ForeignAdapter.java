package org.lora4j.format;

import java.io.IOException;
import java.util.Collection;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.LoraConfig;

/**
 * An adapter of another layout, told in PEFT's terms: the configuration it amounts to and where each tensor of PEFT's
 * comes from. Nothing is computed: a tensor has the bytes of its source, at most in another shape.
 *
 * @param layout the layout it was read from
 * @param config rank, alpha and targets; modules that differ from the most frequent rank or alpha are in the patterns
 * @param tensors the tensors by PEFT's keys, in the order of the modules
 * @param metadata the strings of the file that describe it
 */
public record ForeignAdapter(
        AdapterLayout layout, LoraConfig config, Map<String, Origin> tensors, Map<String, String> metadata) {
    /**
     * Where a tensor comes from.
     *
     * @param source its name in the file
     * @param dtype its element type, the same there
     * @param shape its sizes in PEFT; there it may have the same elements in other sizes
     */
    public record Origin(String source, DType dtype, long[] shape) {
        public Origin {
            shape = shape.clone();
        }

        @Override
        public long[] shape() {
            return shape.clone();
        }
    }

    public ForeignAdapter {
        tensors = Collections.unmodifiableMap(new LinkedHashMap<>(tensors));
        metadata = Collections.unmodifiableMap(new LinkedHashMap<>(metadata));
    }

    /**
     * Reads a file whose every tensor belongs to one base model.
     *
     * @param file of kohya's or diffusers' layout
     * @param modulePaths the paths of the base model's modules, as in {@code named_modules()}; more than the adapted ones
     *     are needed, so that a name that means two modules is noticed
     * @throws FormatException listing every name that means no module, several or nothing known, and every tensor that
     *     does not fit the others of its module
     */
    public static ForeignAdapter of(TensorFile file, Collection<String> modulePaths) throws IOException {
        return new ForeignReader(file, null, modulePaths).read();
    }

    /**
     * Reads one part of a file that adapts several models, and leaves the others out.
     *
     * @param part one of {@link #parts}
     */
    public static ForeignAdapter of(TensorFile file, String part, Collection<String> modulePaths) throws IOException {
        return new ForeignReader(file, part, modulePaths).read();
    }

    /**
     * The parts of a pipeline that a file adapts, as it spells them: {@code lora_unet}, {@code lora_te1} or {@code unet},
     * {@code text_encoder}. An empty string stands for names without a part.
     */
    public static Set<String> parts(TensorFile file) {
        Set<String> parts = new TreeSet<>();
        AdapterLayout layout = AdapterLayout.of(file.tensors().keySet());
        for (String key : file.tensors().keySet()) {
            LoraKey parsed = parse(layout, key);
            if (parsed != null) {
                parts.add(parsed.part());
            }
        }
        return parts;
    }

    static @Nullable LoraKey parse(AdapterLayout layout, String key) {
        return switch (layout) {
            case KOHYA -> KohyaKeys.parse(key);
            case DIFFUSERS -> DiffusersKeys.parse(key);
            default -> null;
        };
    }

    static FormatException refused(String source, String what, List<String> problems) {
        return new FormatException(source + ": " + what + ": " + String.join("; ", problems));
    }
}
