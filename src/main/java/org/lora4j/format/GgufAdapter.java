package org.lora4j.format;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collection;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.TreeSet;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.LoraConfig;
import org.lora4j.format.LoraKey.Role;

/**
 * Converts adapters between PEFT's folders and GGUF files as llama.cpp's {@code convert_lora_to_gguf.py} writes and its
 * programs read them: {@code blk.0.attn_q.weight.lora_a} of shape (r, in), {@code .lora_b} of shape (out, r), one alpha for
 * all. The numbers keep their bits; of Llama models the rows of B of queries and keys are in another order there.
 */
public final class GgufAdapter {
    static final String ARCHITECTURE = "general.architecture";
    static final String TYPE = "general.type";
    static final String ADAPTER = "adapter.type";
    static final String ALPHA = "adapter.lora.alpha";

    private GgufAdapter() {}

    /**
     * Writes an adapter as PEFT does.
     *
     * @param file a GGUF adapter
     * @param base the {@code config.json} of the base model, or the folder that holds it
     * @param modulePaths the paths of all modules of the base model
     * @param folder where to write {@code adapter_model.safetensors} and {@code adapter_config.json}; made if need be
     * @return the configuration that was written
     * @throws FormatException listing everything that has no form in PEFT; nothing is written then
     */
    public static LoraConfig toPeft(Path file, Path base, Collection<String> modulePaths, Path folder)
            throws IOException {
        try (GgufFile source = GgufFile.open(file)) {
            List<String> problems = new ArrayList<>();
            GgufNames names = GgufNames.of(base);
            expect(source, TYPE, "adapter", problems);
            expect(source, ADAPTER, "lora", problems);
            expect(source, ARCHITECTURE, names.architecture(), problems);
            source.values().keySet().stream()
                    .filter(key -> key.startsWith("adapter.") && !key.equals(ADAPTER) && !key.equals(ALPHA))
                    .forEach(key -> problems.add(key + " is no field of a plain adapter"));
            Map<String, ForeignModule> modules = new TreeMap<>(JsonText.BY_CODE_POINT);
            for (TensorInfo tensor : source.tensors().values()) {
                Role role = tensor.name().endsWith(".weight.lora_a")
                        ? Role.A
                        : tensor.name().endsWith(".weight.lora_b") ? Role.B : null;
                String module = role == null
                        ? null
                        : names.toPeft(tensor.name().substring(0, tensor.name().length() - ".weight.lora_a".length()));
                if (role == null || module == null) {
                    problems.add(tensor.name() + " is no factor of a linear layer of " + names.architecture());
                } else if (modules.computeIfAbsent(module, name -> new ForeignModule("", name))
                                .tensors
                                .putIfAbsent(role, tensor)
                        != null) {
                    problems.add(tensor.name() + " is there in two spellings");
                } else if (tensor.shape().length != 2) {
                    problems.add(tensor + " is no matrix");
                } else if (role == Role.B) {
                    checkHeads(tensor, names.heads(module), problems);
                }
            }
            Object alpha = source.values().get(ALPHA);
            for (ForeignModule module : modules.values()) {
                module.path = path(module.module, modulePaths, problems);
                module.check(source, problems);
                module.alpha = alpha instanceof Double number && number != 0 ? number : module.rank;
            }
            refuse(file, "has no exact form in PEFT's layout, for this base model", problems);
            ModuleNames all = new ModuleNames(modulePaths);
            List<ForeignModule> sorted = new ArrayList<>(modules.values());
            sorted.sort(Comparator.comparing((ForeignModule module) -> module.path, JsonText.BY_CODE_POINT));
            LoraConfig config = new ForeignConfig(source, AdapterLayout.GGUF, sorted, all, problems).config();
            refuse(file, "has no exact form in PEFT's layout, for this base model", problems);
            SafetensorsWriter writer = new SafetensorsWriter(Map.of("format", "pt"));
            for (ForeignModule module : sorted) {
                int heads = names.heads(module.module);
                module.tensors.forEach((role, info) -> writer.add(
                        PeftKeys.PREFIX + module.path + PeftKeys.suffix(role),
                        info.dtype(),
                        info.shape(),
                        role == Role.B ? rows(source, info, heads, false) : source.source(info.name())));
            }
            Files.createDirectories(folder);
            writer.write(folder.resolve(AdapterFolder.SAFETENSORS));
            AdapterConfigJson.write(folder.resolve(AdapterConfigJson.FILE_NAME), config);
            return config;
        }
    }

    /**
     * Writes an adapter of PEFT's layout as GGUF. Alpha is rounded to float32, the type the format has for it; with {@code
     * use_rslora} it is alpha * sqrt(rank).
     *
     * @param folder the adapter
     * @param base the {@code config.json} of the base model, or the folder that holds it
     * @throws FormatException listing all that GGUF adapters have no place for: other tensors than those of linear layers,
     *     other variants than plain LoRA, scales that no single alpha gives
     */
    public static void fromPeft(Path folder, Path base, Path file) throws IOException {
        List<String> problems = new ArrayList<>();
        try (PeftFolder adapter = PeftFolder.open(folder, problems)) {
            adapter.refuseForKohya(problems);
            GgufNames names = GgufNames.of(base);
            TreeSet<Double> alphas = new TreeSet<>();
            Map<String, ForeignModule> modules = new LinkedHashMap<>();
            for (ForeignModule module : adapter.modules()) {
                String name = names.toGguf(module.path);
                if (name == null) {
                    problems.add(module.path + " has no name among GGUF's for " + names.architecture());
                } else if (modules.putIfAbsent(name, module) != null) {
                    problems.add(module.path + " and another module are both " + name);
                }
                alphas.add(module.alpha);
                module.tensors.forEach((role, info) -> {
                    boolean factor = role == Role.A || role == Role.B;
                    if (!factor || info.shape().length != 2 || GgufFile.number(info.dtype()) == null) {
                        problems.add(info + " has no place in a GGUF adapter");
                    }
                });
                TensorInfo b = module.tensors.get(Role.B);
                if (b != null) {
                    checkHeads(b, names.heads(module.path), problems);
                }
            }
            if (alphas.size() > 1) {
                problems.add("its modules have the alphas " + alphas + ", and GGUF has one for all");
            }
            refuse(folder, "has no exact form as a GGUF adapter", problems);
            Map<String, Object> values = new LinkedHashMap<>();
            values.put(ARCHITECTURE, names.architecture());
            values.put(TYPE, "adapter");
            values.put(ADAPTER, "lora");
            values.put(ALPHA, alphas.isEmpty() ? 0f : alphas.first().floatValue());
            GgufWriter writer = new GgufWriter(values);
            modules.forEach((name, module) -> module.tensors.forEach((role, info) -> writer.add(
                    name + (role == Role.A ? ".weight.lora_a" : ".weight.lora_b"),
                    info.dtype(),
                    info.shape(),
                    role == Role.B
                            ? rows(adapter.file(), info, names.heads(module.path), true)
                            : adapter.file().source(info.name()))));
            writer.write(file);
        }
    }

    private static void expect(GgufFile file, String key, String wanted, List<String> problems) {
        Object found = file.values().get(key);
        if (!wanted.equals(found)) {
            problems.add(key + " is " + found + ", not " + wanted);
        }
    }

    private static void checkHeads(TensorInfo b, int heads, List<String> problems) {
        if (heads > 0 && (b.shape()[0] == 0 || b.shape()[0] % (2L * heads) != 0)) {
            problems.add(b + " are not the rows of " + heads + " heads of an even size");
        }
    }

    private static void refuse(Path source, String what, List<String> problems) throws FormatException {
        if (!problems.isEmpty()) {
            throw ForeignAdapter.refused(source.toString(), what, problems);
        }
    }

    /** The module of the base model; its path may begin otherwise, as a multimodal model's does. */
    private static String path(String module, Collection<String> paths, List<String> problems) {
        if (paths.contains(module)) {
            return module;
        }
        String bare = module.startsWith("model.") ? module.substring("model.".length()) : module;
        List<String> found = paths.stream()
                .filter(path -> path.equals(bare) || path.endsWith("." + bare))
                .toList();
        if (found.size() != 1) {
            problems.add(module + (found.isEmpty() ? " is no module of the base model" : " may be any of " + found));
            return module;
        }
        return found.get(0);
    }

    /**
     * The rows of B, each with the bytes it has. Where a head's rows are its two halves one after the other in PEFT, llama.cpp
     * has them in turn; 0 heads keep the order.
     */
    private static TensorSource rows(TensorFile file, TensorInfo info, int heads, boolean toGguf) {
        if (heads == 0) {
            return file.source(info.name());
        }
        return out -> {
            ByteBuffer all = file.read(info.name());
            int rows = (int) info.shape()[0];
            int size = rows == 0 ? 0 : all.remaining() / rows;
            int head = rows / heads;
            ByteBuffer ordered = ByteBuffer.allocate(all.remaining());
            for (int row = 0; row < rows; row++) {
                int within = row % head;
                int from = toGguf
                        ? row - within + within % 2 * (head / 2) + within / 2
                        : row - within + within % (head / 2) * 2 + within / (head / 2);
                ordered.put(all.duplicate().position(from * size).limit((from + 1) * size));
            }
            SafetensorsWriter.writeFully(out, ordered.flip());
        };
    }

    /** A field of the base's configuration, or of its part for text. */
    static @Nullable Object field(Map<String, @Nullable Object> config, String name) {
        Object value = config.get(name);
        return value == null && config.get("text_config") instanceof Map<?, ?> text ? text.get(name) : value;
    }
}
