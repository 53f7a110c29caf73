package org.lora4j.format;

/** A safetensors file or the index of a checkpoint is defective; nothing of it was read as a tensor. */
public final class SafetensorsException extends FormatException {
    private static final long serialVersionUID = 1;

    /** What is wrong with a file. */
    public enum Defect {
        /** The file has fewer than the eight bytes that hold the header's length. */
        FILE_TOO_SHORT,
        /** The header claims more than 100 MB. */
        HEADER_TOO_LARGE,
        /** The file ends inside the header. */
        HEADER_TRUNCATED,
        /** The header does not start with an opening brace. */
        HEADER_START,
        /** The header is not UTF-8. */
        HEADER_NOT_UTF8,
        /** The header is not one JSON object. */
        HEADER_NOT_JSON,
        /** The header nests arrays or objects too deep. */
        HEADER_TOO_DEEP,
        /** Something other than spaces follows the header's JSON. */
        HEADER_PADDING,
        /** A name occurs twice. */
        DUPLICATE_KEY,
        /** {@code __metadata__} is not an object of strings. */
        METADATA_NOT_STRINGS,
        /** The entry of a tensor lacks a field, or a field has the wrong form. */
        BAD_ENTRY,
        /** The element type is not one of {@link DType}. */
        UNKNOWN_DTYPE,
        /** A dimension is negative or not a whole number, or there are too many. */
        BAD_SHAPE,
        /** The offsets are not two ascending whole numbers. */
        BAD_OFFSETS,
        /** A tensor begins before the one in front of it ends. */
        OVERLAP,
        /** Bytes between two tensors, or before the first, belong to none. */
        HOLE,
        /** The size of a tensor does not fit in 63 bits. */
        SIZE_OVERFLOW,
        /** Shape and element type need another number of bytes than the offsets give. */
        SIZE_MISMATCH,
        /** Elements smaller than a byte do not fill whole bytes. */
        PARTIAL_BYTE,
        /** The file ends before its last tensor. */
        DATA_TRUNCATED,
        /** Bytes after the last tensor belong to none. */
        TRAILING_BYTES,
        /** The index of a sharded checkpoint is not of the required form. */
        INDEX_MALFORMED,
        /** The index names a shard that is not a plain file name ending in {@code .safetensors}. */
        INDEX_SHARD_NAME,
        /** The index names a shard that does not exist. */
        INDEX_SHARD_MISSING,
        /** The index puts a tensor into a shard that does not hold it. */
        INDEX_TENSOR_MISSING,
        /** A shard holds a tensor that the index does not put there. */
        INDEX_TENSOR_UNLISTED
    }

    private final Defect defect;

    SafetensorsException(Defect defect, String message) {
        super(message);
        this.defect = defect;
    }

    SafetensorsException(Defect defect, String message, Throwable cause) {
        super(message, cause);
        this.defect = defect;
    }

    public Defect defect() {
        return defect;
    }
}
