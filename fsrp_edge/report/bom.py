"""bom.json: a machine-learning bill of materials in CycloneDX 1.6, by the project's own library."""

import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fsrp_edge.report.manifest import Manifest

if TYPE_CHECKING:
    from cyclonedx.model.component import Component


def render(manifest: Manifest) -> str:
    """The checkpoint, the data, the files and the software that made them; the same manifest gives the same text."""
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import ComponentType
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL

    model, data = ComponentType.MACHINE_LEARNING_MODEL, ComponentType.DATA
    spec = manifest.source.model
    shape = "x".join(map(str, spec.input_shape))
    root = _component(
        model,
        manifest.source.checkpoint,
        manifest.source.sha256,
        {"architecture": spec.architecture, "classes": str(spec.classes), "input": shape},
        ref="checkpoint",
    )
    files = [
        _component(
            model,
            artifact.path.as_posix(),
            artifact.sha256,
            {
                "format": artifact.format,
                "precision": artifact.precision,
                "weights_sha256": manifest.origin(artifact).weights_sha256,
                "target": manifest.target.name,
                **{
                    f"accuracy {accuracy.attack}": f"{accuracy.correct}/{accuracy.images} {accuracy.label_kind}"
                    for accuracy in manifest.accuracies.get(artifact.path.as_posix(), ())
                },
            },
        )
        for artifact in manifest.artifacts
    ]
    sets = [
        _component(data, images.name, images.sha256, {"images": str(images.images), "use": use}, ref=use)
        for use, images in (("training", manifest.data.train), ("evaluation", manifest.data.evaluation))
    ]
    software = {"fsrp-edge": manifest.provenance.fsrp_edge, **manifest.provenance.libraries}
    libraries = []
    for name, version in software.items():
        library = _component(ComponentType.LIBRARY, name, None, {})
        library.version, library.purl = version, PackageURL("pypi", version=version, name=name)
        libraries.append(library)
    identity = "".join([manifest.source.sha256, *(artifact.sha256 for artifact in manifest.artifacts)])
    bom = Bom(components=[*files, *sets, *libraries], serial_number=uuid.uuid5(uuid.NAMESPACE_OID, identity))
    bom.metadata.component = root
    bom.metadata.timestamp = manifest.provenance.started_at
    bom.register_dependency(root, [*sets, *libraries])
    for file in files:
        bom.register_dependency(file, [root])
    return JsonV1Dot6(bom).output_as_string(indent=1) + "\n"


def _component(
    kind: object, name: str, sha256: str | None, properties: Mapping[str, str], ref: str | None = None
) -> "Component":
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component

    return Component(
        type=kind,  # type: ignore[arg-type]
        name=name,
        bom_ref=ref or name,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)] if sha256 else [],
        properties=[Property(name=f"fsrp-edge:{key}", value=value) for key, value in properties.items()],
    )
