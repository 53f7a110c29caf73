package org.lora4j.format;

import java.util.Map;

/** The names PyTorch's pickles give to element types, where safetensors has the type as well. */
final class TorchTypes {
    /** Classes of storages in the module {@code torch}. */
    static final Map<String, DType> STORAGES = Map.ofEntries(
            Map.entry("torch.DoubleStorage", DType.F64),
            Map.entry("torch.FloatStorage", DType.F32),
            Map.entry("torch.HalfStorage", DType.F16),
            Map.entry("torch.BFloat16Storage", DType.BF16),
            Map.entry("torch.LongStorage", DType.I64),
            Map.entry("torch.IntStorage", DType.I32),
            Map.entry("torch.ShortStorage", DType.I16),
            Map.entry("torch.CharStorage", DType.I8),
            Map.entry("torch.ByteStorage", DType.U8),
            Map.entry("torch.BoolStorage", DType.BOOL),
            Map.entry("torch.ComplexFloatStorage", DType.C64));

    /** The storage of tensors whose type has no class of storages. */
    static final String UNTYPED_STORAGE = "torch.storage.UntypedStorage";

    /** Types without a class of storages; their tensors name them. */
    static final Map<String, DType> DTYPES = Map.of(
            "torch.uint16", DType.U16,
            "torch.uint32", DType.U32,
            "torch.uint64", DType.U64,
            "torch.float8_e4m3fn", DType.F8_E4M3,
            "torch.float8_e5m2", DType.F8_E5M2,
            "torch.float8_e4m3fnuz", DType.F8_E4M3FNUZ,
            "torch.float8_e5m2fnuz", DType.F8_E5M2FNUZ,
            "torch.float8_e8m0fnu", DType.F8_E8M0);

    private TorchTypes() {}
}
