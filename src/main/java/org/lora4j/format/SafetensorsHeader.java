package org.lora4j.format;

import java.util.ArrayList;
import java.util.Collections;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.lora4j.format.SafetensorsException.Defect;

/**
 * The checked header of a safetensors file.
 *
 * @param metadata the entries of {@code __metadata__}, in the file's order
 * @param tensors the tensors by name, in the order of their data
 */
record SafetensorsHeader(Map<String, String> metadata, Map<String, TensorInfo> tensors) {
    /** The longest header, in bytes. */
    static final int MAX_BYTES = 100_000_000;

    static final String METADATA = "__metadata__";

    /** The most dimensions of a tensor; LibTorch's own iterators stop there. */
    static final int MAX_RANK = 64;

    /**
     * Parses and checks a header.
     *
     * @param json the header, without its length
     * @param dataBytes the number of bytes in the file after the header
     * @param file the file's name, for messages
     */
    static SafetensorsHeader parse(byte[] json, long dataBytes, String file) throws SafetensorsException {
        SafetensorsHeaderReader reader = new SafetensorsHeaderReader(json, file);
        reader.read();
        List<TensorInfo> tensors = new ArrayList<>(reader.tensors.values());
        tensors.sort(Comparator.comparingLong(TensorInfo::begin).thenComparingLong(TensorInfo::end));
        Map<String, TensorInfo> ordered = new LinkedHashMap<>();
        TensorInfo previous = null;
        long covered = 0;
        for (TensorInfo tensor : tensors) {
            checkPlace(tensor, previous, covered, file);
            checkSize(tensor, file);
            covered = tensor.end();
            previous = tensor;
            ordered.put(tensor.name(), tensor);
        }
        if (covered > dataBytes) {
            throw new SafetensorsException(
                    Defect.DATA_TRUNCATED,
                    file + ": the tensors need " + covered + " bytes but only " + dataBytes
                            + " follow the header; copy or download the file again");
        }
        if (covered < dataBytes) {
            throw new SafetensorsException(
                    Defect.TRAILING_BYTES,
                    file + ": " + (dataBytes - covered)
                            + " bytes after the last tensor belong to none; get the file from its source again");
        }
        return new SafetensorsHeader(
                Collections.unmodifiableMap(reader.metadata), Collections.unmodifiableMap(ordered));
    }

    private static void checkPlace(
            TensorInfo tensor, @org.jspecify.annotations.Nullable TensorInfo previous, long covered, String file)
            throws SafetensorsException {
        String after = previous == null ? "the start of the data" : "the end of tensor \"" + previous.name() + "\"";
        if (tensor.begin() < covered) {
            throw tensor(
                    Defect.OVERLAP,
                    file,
                    tensor.name(),
                    "begins at byte " + tensor.begin() + ", before " + after + " at " + covered,
                    "write the file again with a correct program");
        }
        if (tensor.begin() > covered) {
            throw tensor(
                    Defect.HOLE,
                    file,
                    tensor.name(),
                    "begins at byte " + tensor.begin() + ", leaving a hole after " + after + " at " + covered,
                    "write the file again with a correct program");
        }
    }

    private static void checkSize(TensorInfo tensor, String file) throws SafetensorsException {
        long bytes;
        try {
            bytes = bytes(tensor.dtype(), tensor.shape());
        } catch (ArithmeticException e) {
            throw tensor(
                    Defect.SIZE_OVERFLOW,
                    file,
                    tensor.name(),
                    "has a size beyond 63 bits, " + tensor.dtype() + " " + java.util.Arrays.toString(tensor.shape()),
                    "check the shape");
        }
        if (bytes < 0) {
            throw tensor(
                    Defect.PARTIAL_BYTE,
                    file,
                    tensor.name(),
                    "has " + tensor.dtype() + " elements of " + tensor.dtype().bits()
                            + " bits that do not fill whole bytes",
                    "check the shape");
        }
        if (bytes != tensor.bytes()) {
            throw tensor(
                    Defect.SIZE_MISMATCH,
                    file,
                    tensor.name(),
                    "needs " + bytes + " bytes as " + tensor.dtype() + " " + java.util.Arrays.toString(tensor.shape())
                            + " but its offsets give " + tensor.bytes(),
                    "check shape, type and offsets");
        }
    }

    /**
     * The bytes of a tensor, or -1 if its elements do not fill whole bytes.
     *
     * @throws ArithmeticException if the size does not fit
     */
    static long bytes(DType dtype, long[] shape) {
        long elements = 1;
        for (long size : shape) {
            elements = Math.multiplyExact(elements, size);
        }
        long bits = Math.multiplyExact(elements, (long) dtype.bits());
        return bits % 8 == 0 ? bits / 8 : -1;
    }

    static SafetensorsException tensor(Defect defect, String file, String name, String what, String next) {
        return new SafetensorsException(defect, file + ": tensor \"" + shorten(name) + "\" " + what + "; " + next);
    }

    static String shorten(String name) {
        return name.length() <= 200 ? name : name.substring(0, 200) + "...";
    }

    /** The header as the reference implementation writes it, padded with spaces to a multiple of eight bytes. */
    String text() {
        StringBuilder out = new StringBuilder("{");
        if (!metadata.isEmpty()) {
            JsonText.quote(out, METADATA, false);
            out.append(":{");
            metadata.forEach((key, value) -> {
                JsonText.quote(out, key, false);
                out.append(':');
                JsonText.quote(out, value, false);
                out.append(',');
            });
            out.setCharAt(out.length() - 1, '}');
            out.append(',');
        }
        for (TensorInfo tensor : tensors.values()) {
            JsonText.quote(out, tensor.name(), false);
            out.append(":{\"dtype\":\"").append(tensor.dtype()).append("\",\"shape\":[");
            String separator = "";
            for (long size : tensor.shape()) {
                out.append(separator).append(size);
                separator = ",";
            }
            out.append("],\"data_offsets\":[").append(tensor.begin()).append(',');
            out.append(tensor.end()).append("]},");
        }
        if (out.length() > 1) {
            out.setLength(out.length() - 1);
        }
        return out.append('}').toString();
    }
}
