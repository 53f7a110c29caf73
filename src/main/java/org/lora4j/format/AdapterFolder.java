package org.lora4j.format;

import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;

/** The files of an adapter in PEFT's folder. */
public final class AdapterFolder {
    /** The tensors, as PEFT writes them unless told otherwise. */
    public static final String SAFETENSORS = "adapter_model.safetensors";

    /** The tensors, as {@code save_pretrained(safe_serialization=False)} writes them. */
    public static final String BIN = "adapter_model.bin";

    private AdapterFolder() {}

    /**
     * The file with the tensors: safetensors if it is there, as in PEFT.
     *
     * @throws NoSuchFileException if the folder has neither file
     */
    public static Path tensors(Path folder) throws NoSuchFileException {
        Path safetensors = folder.resolve(SAFETENSORS);
        Path bin = folder.resolve(BIN);
        if (!Files.exists(safetensors) && !Files.exists(bin)) {
            throw new NoSuchFileException(
                    folder.toString(), null, "holds neither " + SAFETENSORS + " nor " + BIN + "; check the folder");
        }
        return Files.exists(safetensors) ? safetensors : bin;
    }
}
