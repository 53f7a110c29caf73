package org.lora4j.format;

import java.io.Closeable;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.LoraKey.Role;

/**
 * Converts adapters between PEFT's layout and those of kohya's scripts and of diffusers. Every tensor keeps its bytes.
 * What the target layout has no place for is refused with a list of all of it; nothing is left out.
 */
public final class AdapterConverter {
    private AdapterConverter() {}

    /**
     * Writes an adapter as PEFT does, from a file of another layout that adapts one model.
     *
     * @param file safetensors, or of {@code torch.save}
     * @param modulePaths the paths of all modules of the base model, see {@link ForeignAdapter#of}
     * @param folder where to write {@code adapter_model.safetensors} and {@code adapter_config.json}; made if need be
     * @return what was written
     * @throws FormatException listing all names and tensors that do not fit; nothing is written then
     */
    public static ForeignAdapter toPeft(Path file, Collection<String> modulePaths, Path folder) throws IOException {
        return toPeft(file, null, modulePaths, folder);
    }

    /**
     * Likewise for one part of a file that adapts several models.
     *
     * @param part such as {@code lora_unet} or {@code text_encoder}, see {@link ForeignAdapter#parts}; null for all
     */
    public static ForeignAdapter toPeft(Path file, @Nullable String part, Collection<String> modulePaths, Path folder)
            throws IOException {
        try (TensorFile source = TensorFile.open(file)) {
            ForeignAdapter adapter = new ForeignReader(source, part, modulePaths).read();
            SafetensorsWriter writer = new SafetensorsWriter(withFormat(adapter.metadata()));
            adapter.tensors()
                    .forEach((key, origin) ->
                            writer.add(key, origin.dtype(), origin.shape(), source.source(origin.source())));
            Files.createDirectories(folder);
            writer.write(folder.resolve(AdapterFolder.SAFETENSORS));
            AdapterConfigJson.write(folder.resolve(AdapterConfigJson.FILE_NAME), adapter.config());
            return adapter;
        }
    }

    /**
     * Writes adapters of PEFT's layout into one file of kohya's. Each alpha is written so that alpha / rank is the
     * adapter's scale: with {@code use_rslora}, it is alpha * sqrt(rank).
     *
     * @param folders the adapters by the part of the pipeline they are for, {@code lora_unet}, {@code lora_te},
     *     {@code lora_te1} or {@code lora_te2}
     * @throws FormatException listing all that kohya's layout has no place for: other tensors than those of linear layers
     *     and convolutions, variants other than DoRA, initialisations that change the base
     * @throws IllegalArgumentException if the name of a part is not of this form
     */
    public static void toKohya(Map<String, Path> folders, Path file) throws IOException {
        write(folders, file, AdapterLayout.KOHYA);
    }

    /**
     * Writes adapters of PEFT's layout into one file of diffusers', the configurations in its metadata. Fields PEFT does
     * not know are left out, since diffusers would not take them.
     *
     * @param folders the adapters by the part of the pipeline they are for, such as {@code unet}, {@code transformer} or
     *     {@code text_encoder}
     * @throws FormatException listing all tensors that are not those of linear layers and convolutions
     * @throws IllegalArgumentException if a part is none of diffusers'
     */
    public static void toDiffusers(Map<String, Path> folders, Path file) throws IOException {
        write(folders, file, AdapterLayout.DIFFUSERS);
    }

    private static void write(Map<String, Path> folders, Path file, AdapterLayout layout) throws IOException {
        boolean kohya = layout == AdapterLayout.KOHYA;
        for (String part : folders.keySet()) {
            if (kohya ? !KohyaKeys.isPart(part) : !DiffusersKeys.isPart(part)) {
                throw new IllegalArgumentException("part \"" + part + "\" is none of " + layout + "; use "
                        + (kohya ? "lora_unet, lora_te, lora_te1 or lora_te2" : "unet, transformer or text_encoder"));
            }
        }
        List<Closeable> open = new ArrayList<>();
        try {
            List<String> problems = new ArrayList<>();
            Map<String, String> metadata = new LinkedHashMap<>();
            Map<String, @Nullable Object> configs = new LinkedHashMap<>();
            Map<String, Tensor> tensors = new LinkedHashMap<>();
            for (Map.Entry<String, Path> folder : folders.entrySet()) {
                PeftFolder adapter = PeftFolder.open(folder.getValue(), problems);
                open.add(adapter);
                adapter.file().metadata().forEach(metadata::putIfAbsent);
                if (kohya) {
                    adapter.refuseForKohya(problems);
                }
                for (ForeignModule module : adapter.modules()) {
                    add(tensors, folder.getKey(), adapter, module, kohya, problems);
                }
                String prefix = folder.getKey().isEmpty() ? "" : folder.getKey() + ".";
                adapter.knownFields().forEach((key, value) -> configs.put(prefix + key, value));
            }
            if (!problems.isEmpty()) {
                throw ForeignAdapter.refused(folders.values().toString(), "has no exact form in " + layout, problems);
            }
            if (!kohya) {
                metadata.put(ForeignConfig.METADATA, JsonText.of(configs));
            }
            SafetensorsWriter writer = new SafetensorsWriter(withFormat(metadata));
            tensors.forEach((key, tensor) -> writer.add(key, tensor.dtype(), tensor.shape(), tensor.source()));
            writer.write(file);
        } finally {
            for (Closeable adapter : open) {
                adapter.close();
            }
        }
    }

    private record Tensor(DType dtype, long[] shape, TensorSource source) {}

    private static void add(
            Map<String, Tensor> tensors,
            String part,
            PeftFolder adapter,
            ForeignModule module,
            boolean kohya,
            List<String> problems) {
        module.tensors.forEach((role, info) -> {
            if (kohya && role == Role.B_BIAS) {
                problems.add(info.name() + " is a bias, which kohya's layout lacks");
                return;
            }
            long[] shape = info.shape();
            if (kohya && role == Role.MAGNITUDE) {
                long[] b = java.util.Objects.requireNonNull(module.tensors.get(Role.B))
                        .shape();
                shape = ForeignModule.foreignMagnitude(b[0], b.length);
            }
            String key = kohya ? KohyaKeys.key(part, module.path, role) : DiffusersKeys.key(part, module.path, role);
            Tensor tensor = new Tensor(info.dtype(), shape, adapter.file().source(info.name()));
            if (tensors.putIfAbsent(key, tensor) != null) {
                problems.add("two modules have the name " + key + "; rename one in the base model");
            }
        });
        TensorInfo a = module.tensors.get(Role.A);
        if (kohya && a != null) {
            tensors.put(KohyaKeys.key(part, module.path, Role.ALPHA), alpha(module.alpha, a.dtype()));
        }
    }

    /** A scalar of the type of the factors, or of a wider one if that does not hold it exactly. */
    private static Tensor alpha(double value, DType factors) {
        for (DType dtype : new DType[] {factors, DType.F32, DType.F64}) {
            byte[] bytes = Scalars.encode(value, dtype);
            if (bytes != null) {
                ByteBuffer buffer = ByteBuffer.wrap(bytes);
                return new Tensor(dtype, new long[0], out -> SafetensorsWriter.writeFully(out, buffer.duplicate()));
            }
        }
        throw new IllegalArgumentException("alpha is " + value + "; it must be a finite number");
    }

    private static Map<String, String> withFormat(Map<String, String> metadata) {
        Map<String, String> all = new LinkedHashMap<>(metadata);
        all.put("format", "pt");
        return all;
    }
}
