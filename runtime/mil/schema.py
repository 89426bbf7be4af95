"""The part of Core ML's protobuf schema that an ML Program needs, as message classes built at import.

Field numbers and types are those of Apple's `Model.proto`, `FeatureTypes.proto` and `MIL.proto` (a test compares them
with the ones in coremltools). The classes live in a private descriptor pool: coremltools registers the same message
names in the global one, and both must be usable in one process. Model kinds other than ML Programs are declared as
plain bytes: they are recognised by name and never read.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "CoreML.Specification"

# message name -> lines "number name type"; "*" repeats, "map<k,v>" is a map, "one:" opens a oneof until the line "end".
_MESSAGES = {
    "Model": """
        1 specificationVersion int32
        2 description ModelDescription
        10 isUpdatable bool
        one:Type
        200 pipelineClassifier bytes
        201 pipelineRegressor bytes
        202 pipeline bytes
        300 glmRegressor bytes
        301 supportVectorRegressor bytes
        302 treeEnsembleRegressor bytes
        303 neuralNetworkRegressor bytes
        304 bayesianProbitRegressor bytes
        400 glmClassifier bytes
        401 supportVectorClassifier bytes
        402 treeEnsembleClassifier bytes
        403 neuralNetworkClassifier bytes
        404 kNearestNeighborsClassifier bytes
        500 neuralNetwork bytes
        501 itemSimilarityRecommender bytes
        502 mlProgram Program
        555 customModel bytes
        556 linkedModel bytes
        560 classConfidenceThresholding bytes
        600 oneHotEncoder bytes
        601 imputer bytes
        602 featureVectorizer bytes
        603 dictVectorizer bytes
        604 scaler bytes
        606 categoricalMapping bytes
        607 normalizer bytes
        609 arrayFeatureExtractor bytes
        610 nonMaximumSuppression bytes
        900 identity bytes
        2000 textClassifier bytes
        2001 wordTagger bytes
        2002 visionFeaturePrint bytes
        2003 soundAnalysisPreprocessing bytes
        2004 gazetteer bytes
        2005 wordEmbedding bytes
        2006 audioFeaturePrint bytes
        3000 serializedModel bytes
        end""",
    "ModelDescription": """
        1 input *FeatureDescription
        10 output *FeatureDescription
        11 predictedFeatureName string
        12 predictedProbabilitiesName string
        13 state *FeatureDescription
        20 functions *FunctionDescription
        21 defaultFunctionName string
        100 metadata Metadata""",
    "FunctionDescription": """
        1 name string
        2 input *FeatureDescription
        3 output *FeatureDescription
        4 predictedFeatureName string
        5 predictedProbabilitiesName string
        6 state *FeatureDescription""",
    "Metadata": """
        1 shortDescription string
        2 versionString string
        3 author string
        4 license string
        100 userDefined map<string,string>""",
    "FeatureDescription": """
        1 name string
        2 shortDescription string
        3 type FeatureType""",
    "FeatureType": """
        one:Type
        1 int64Type Empty
        2 doubleType Empty
        3 stringType Empty
        4 imageType ImageFeatureType
        5 multiArrayType ArrayFeatureType
        6 dictionaryType DictionaryFeatureType
        7 sequenceType bytes
        8 stateType StateFeatureType
        end
        1000 isOptional bool""",
    "Empty": "",
    "DictionaryFeatureType": """
        one:KeyType
        1 int64KeyType Empty
        2 stringKeyType Empty
        end""",
    "StateFeatureType": """
        one:Type
        1 arrayType ArrayFeatureType
        end""",
    "SizeRange": """
        1 lowerBound uint64
        2 upperBound int64""",
    "ImageFeatureType": """
        1 width int64
        2 height int64
        3 colorSpace int32
        one:SizeFlexibility
        21 enumeratedSizes EnumeratedImageSizes
        31 imageSizeRange ImageSizeRange
        end""",
    "ImageSize": """
        1 width uint64
        2 height uint64""",
    "EnumeratedImageSizes": "1 sizes *ImageSize",
    "ImageSizeRange": """
        1 widthRange SizeRange
        2 heightRange SizeRange""",
    "ArrayFeatureType": """
        1 shape *int64
        2 dataType int32
        one:ShapeFlexibility
        21 enumeratedShapes EnumeratedShapes
        31 shapeRange ShapeRange
        end
        one:defaultOptionalValue
        41 intDefaultValue int32
        51 floatDefaultValue float
        61 doubleDefaultValue double
        end""",
    "Shape": "1 shape *int64",
    "EnumeratedShapes": "1 shapes *Shape",
    "ShapeRange": "1 sizeRanges *SizeRange",
    # MIL.proto
    "Program": """
        1 version int64
        2 functions map<string,Function>
        3 docString string
        4 attributes map<string,Value>""",
    "Function": """
        1 inputs *NamedValueType
        2 opset string
        3 block_specializations map<string,Block>
        4 attributes map<string,Value>""",
    "Block": """
        1 inputs *NamedValueType
        2 outputs *string
        3 operations *Operation
        4 attributes map<string,Value>""",
    "Argument": "1 arguments *Binding",
    "Binding": """
        one:binding
        1 name string
        2 value Value
        end""",
    "Operation": """
        1 type string
        2 inputs map<string,Argument>
        3 outputs *NamedValueType
        4 blocks *Block
        5 attributes map<string,Value>""",
    "NamedValueType": """
        1 name string
        2 type ValueType""",
    "ValueType": """
        one:type
        1 tensorType TensorType
        2 listType ListType
        3 tupleType TupleType
        4 dictionaryType DictionaryType
        5 stateType StateType
        end""",
    "TensorType": """
        1 dataType int32
        2 rank int64
        3 dimensions *Dimension
        4 attributes map<string,Value>""",
    "TupleType": "1 types *ValueType",
    "ListType": """
        1 type ValueType
        2 length Dimension""",
    "DictionaryType": """
        1 keyType ValueType
        2 valueType ValueType""",
    "StateType": "1 wrappedType ValueType",
    "Dimension": """
        one:dimension
        1 constant ConstantDimension
        2 unknown UnknownDimension
        end""",
    "ConstantDimension": "1 size uint64",
    "UnknownDimension": "1 variadic bool",
    "Value": """
        1 docString string
        2 type ValueType
        one:value
        3 immediateValue ImmediateValue
        5 blobFileValue BlobFileValue
        end""",
    "ImmediateValue": """
        one:value
        1 tensor TensorValue
        2 tuple TupleValue
        3 list ListValue
        4 dictionary DictionaryValue
        end""",
    "BlobFileValue": """
        1 fileName string
        2 offset uint64""",
    "TensorValue": """
        one:value
        1 floats RepeatedFloats
        2 ints RepeatedInts
        3 bools RepeatedBools
        4 strings RepeatedStrings
        5 longInts RepeatedLongInts
        6 doubles RepeatedDoubles
        7 bytes RepeatedBytes
        end""",
    "RepeatedFloats": "1 values *float",
    "RepeatedDoubles": "1 values *double",
    "RepeatedInts": "1 values *int32",
    "RepeatedLongInts": "1 values *int64",
    "RepeatedBools": "1 values *bool",
    "RepeatedStrings": "1 values *string",
    "RepeatedBytes": "1 values bytes",
    "TupleValue": "1 values *Value",
    "ListValue": "1 values *Value",
    "DictionaryValue": "1 values *KeyValuePair",
    "KeyValuePair": """
        1 key Value
        2 value Value""",
}

#: Enum values (enums travel as plain integers).
COLOR_SPACES = {10: "GRAYSCALE", 20: "RGB", 30: "BGR", 40: "GRAYSCALE_FLOAT16"}
ARRAY_DATA_TYPES = {65552: "fp16", 65568: "fp32", 65600: "fp64", 131080: "int8", 131104: "int32"}

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "uint64": _Field.TYPE_UINT64,
    "bool": _Field.TYPE_BOOL,
    "float": _Field.TYPE_FLOAT,
    "double": _Field.TYPE_DOUBLE,
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
}


def _set_type(field: Any, kind: str) -> None:
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{PACKAGE}.{kind}"


def _add_field(message: Any, number: int, name: str, kind: str, oneof: int | None) -> None:
    field = message.field.add(name=name, number=number, label=_Field.LABEL_OPTIONAL)
    if kind.startswith("map<"):
        entry = message.nested_type.add(name=name[0].upper() + name.replace("_s", "S")[1:] + "Entry")
        entry.options.map_entry = True
        for i, part in enumerate(kind[4:-1].split(",")):
            _set_type(entry.field.add(name=("key", "value")[i], number=i + 1, label=_Field.LABEL_OPTIONAL), part)
        field.label = _Field.LABEL_REPEATED
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{PACKAGE}.{message.name}.{entry.name}"
        return
    if kind.startswith("*"):
        field.label = _Field.LABEL_REPEATED
    _set_type(field, kind.lstrip("*"))
    if oneof is not None:
        field.oneof_index = oneof


def _build() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="palmtop_coreml.proto", package=PACKAGE, syntax="proto3")
    for name, body in _MESSAGES.items():
        message, oneof = file.message_type.add(name=name), None
        for line in body.split("\n"):
            parts = line.split()
            if not parts:
                continue
            if parts[0].startswith("one:"):
                oneof = len(message.oneof_decl)
                message.oneof_decl.add(name=parts[0][4:])
            elif parts[0] == "end":
                oneof = None
            else:
                _add_field(message, int(parts[0]), parts[1], parts[2], oneof)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in _MESSAGES
    }


#: Message classes by (unqualified) name.
MESSAGES = _build()
Model = MESSAGES["Model"]
