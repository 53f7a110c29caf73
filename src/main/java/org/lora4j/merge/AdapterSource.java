package org.lora4j.merge;

import java.io.Closeable;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.WritableByteChannel;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.EnumMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.LoraConfig;
import org.lora4j.format.AdapterConfigJson;
import org.lora4j.format.AdapterFolder;
import org.lora4j.format.DType;
import org.lora4j.format.FormatException;
import org.lora4j.format.TensorFile;
import org.lora4j.format.TensorInfo;
import org.lora4j.merge.AdapterKey.Role;

/** An adapter that is merged: its configuration and its tensors by the modules they belong to. */
final class AdapterSource implements Closeable {
    /** The tensors of one adapted module, or of one parameter of it. */
    static final class Module {
        /** Its path in the base model. */
        final String path;
        /** The module around it that is wrapped itself, such as an attention, or null. */
        final @Nullable String around;

        final int wrappers;
        final Map<Role, AdapterKey> keys = new EnumMap<>(Role.class);

        Module(String path, int wrappers) {
            int within = path.indexOf(AdapterKey.BASE_LAYER + ".");
            this.path = path.replace(AdapterKey.BASE_LAYER + ".", ".");
            this.around = within < 0 ? null : path.substring(0, within);
            this.wrappers = wrappers;
        }
    }

    private final int index;
    private final WeightedAdapter spec;
    private final LoraConfig config;
    private final TensorFile file;
    private final List<FileState> states;
    private final Map<String, Module> modules = new LinkedHashMap<>();
    private final List<AdapterKey> values = new ArrayList<>();
    private final List<AdapterKey> tokens = new ArrayList<>();
    private final List<String> unknown = new ArrayList<>();
    private final List<String> twice = new ArrayList<>();
    private @Nullable Map<String, String> hashes;

    private AdapterSource(int index, WeightedAdapter spec, LoraConfig config, TensorFile file, List<FileState> states) {
        this.index = index;
        this.spec = spec;
        this.config = config;
        this.file = file;
        this.states = states;
        for (String name : new TreeMap<>(file.tensors()).keySet()) {
            AdapterKey key = AdapterKey.parse(name);
            if (key == null) {
                unknown.add(name);
            } else if (key.role() == Role.VALUE) {
                values.add(key);
            } else if (key.role() == Role.TOKENS) {
                tokens.add(key);
            } else {
                Module module = modules.computeIfAbsent(
                        key.path() + " ".repeat(key.wrappers()), id -> new Module(key.path(), key.wrappers()));
                if (module.keys.putIfAbsent(key.role(), key) != null) {
                    twice.add(name);
                }
            }
        }
    }

    static AdapterSource open(int index, WeightedAdapter spec) throws IOException {
        Path json = spec.folder().resolve(AdapterConfigJson.FILE_NAME);
        LoraConfig config = AdapterConfigJson.read(json);
        Path tensors = AdapterFolder.tensors(spec.folder());
        List<FileState> states = List.of(FileState.of(json), FileState.of(tensors));
        return new AdapterSource(index, spec, config, TensorFile.open(tensors), states);
    }

    int index() {
        return index;
    }

    Path folder() {
        return spec.folder();
    }

    double weight() {
        return spec.weight();
    }

    LoraConfig config() {
        return config;
    }

    TensorFile file() {
        return file;
    }

    List<Module> modules() {
        return List.copyOf(modules.values());
    }

    /** Parameters that replace the base's. */
    List<AdapterKey> values() {
        return values;
    }

    /** Rows that replace the base's. */
    List<AdapterKey> tokens() {
        return tokens;
    }

    /** Names that mean nothing in PEFT's layout. */
    List<String> unknown() {
        return unknown;
    }

    /** Names that mean what another one means already. */
    List<String> twice() {
        return twice;
    }

    TensorInfo info(AdapterKey key) {
        return file.tensor(key.key());
    }

    /** SHA-256 of the adapter's files by name. */
    Map<String, String> hashes() throws IOException {
        Map<String, String> known = hashes;
        if (known == null) {
            known = new TreeMap<>();
            for (FileState state : states) {
                known.put(state.path().getFileName().toString(), Hash.of(state.path()));
            }
            hashes = known;
        }
        return known;
    }

    void checkUnchanged() throws IOException {
        for (FileState state : states) {
            state.check();
        }
    }

    /**
     * A copy of a tensor, float32 unless it is bfloat16 or float16. The caller's scope frees it.
     *
     * @throws FormatException if it is no floating tensor
     */
    Tensor load(String key) throws IOException {
        TensorInfo info = file.tensor(key);
        boolean wide = info.dtype() == DType.F64;
        if (!wide && !Numbers.isFloat(info.dtype())) {
            throw new FormatException(file.path() + ": " + key + " is " + info.dtype()
                    + ", and factors must be F32, BF16, F16 or F64; save the adapter in one of these");
        }
        try (TensorOptions type = new TensorOptions(wide ? torch.ScalarType.Double : Numbers.torch(info.dtype()))) {
            Tensor tensor = torch.empty(info.shape(), type, null);
            if (info.bytes() > 0) {
                file.source(key).writeTo(new Memory(tensor));
            }
            return wide ? tensor.to(torch.ScalarType.Float) : tensor;
        }
    }

    /** Writes into the memory of a tensor, piece after piece. */
    private static final class Memory implements WritableByteChannel {
        private final Tensor tensor;
        private long written;

        Memory(Tensor tensor) {
            this.tensor = tensor;
        }

        @Override
        public int write(ByteBuffer bytes) {
            int count = bytes.remaining();
            try (BytePointer memory = new BytePointer(tensor.data_ptr())) {
                memory.position(written).limit(written + count).asByteBuffer().put(bytes);
            }
            written += count;
            return count;
        }

        @Override
        public boolean isOpen() {
            return true;
        }

        @Override
        public void close() {
            // The memory belongs to the tensor.
        }
    }

    @Override
    public void close() throws IOException {
        file.close();
    }

    /** The folder, for messages. */
    @Override
    public String toString() {
        return spec.folder() + (spec.weight() == 1 ? "" : " (weight " + spec.weight() + ")");
    }
}
