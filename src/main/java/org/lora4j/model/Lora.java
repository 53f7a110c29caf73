package org.lora4j.model;

import java.io.IOException;
import java.nio.file.Path;
import java.util.Set;
import org.bytedeco.pytorch.Module;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.PeftCompat;

/** The door: puts adapters on a model. */
public final class Lora {
    private Lora() {}

    /**
     * Freezes a model, adds a fresh adapter to it and makes that active and trainable: PEFT's {@code get_peft_model}. The
     * model itself changes: its own {@code forward} uses the adapter from now on.
     *
     * @param base any tree of LibTorch modules whose parts Java calls
     * @param config what to adapt and how
     * @param name the adapter's name
     * @throws IllegalArgumentException if the configuration does not fit the model; the model is unchanged then, but frozen
     */
    public static <M extends Module> LoraModel<M> wrap(M base, LoraConfig config, String name) {
        return wrap(base, config, name, Set.of());
    }

    /**
     * As {@link #wrap(Module, LoraConfig, String)}, but repeating some defects of PEFT.
     *
     * @param compat the defects to repeat, in all adapters of the model
     */
    public static <M extends Module> LoraModel<M> wrap(M base, LoraConfig config, String name, Set<PeftCompat> compat) {
        LoraModel<M> model = new LoraModel<>(base, compat);
        model.addAdapter(name, config);
        model.setActive(name);
        return model;
    }

    /**
     * Freezes a model, loads an adapter from a folder and makes it active: PEFT's {@code PeftModel.from_pretrained}. It
     * gets no gradients until {@link LoraModel#setTrainable} says so.
     *
     * @param folder a folder with adapter_config.json and adapter_model.safetensors
     * @throws IllegalArgumentException if the adapter does not fit the model
     * @throws IOException if a file cannot be read or is defective
     */
    public static <M extends Module> LoraModel<M> load(M base, Path folder, String name) throws IOException {
        return load(base, folder, name, Set.of());
    }

    /**
     * As {@link #load(Module, Path, String)}, but repeating some defects of PEFT.
     *
     * @param compat the defects to repeat, in all adapters of the model
     */
    public static <M extends Module> LoraModel<M> load(M base, Path folder, String name, Set<PeftCompat> compat)
            throws IOException {
        LoraModel<M> model = new LoraModel<>(base, compat);
        model.loadAdapter(folder, name);
        model.setActive(name);
        return model;
    }
}
