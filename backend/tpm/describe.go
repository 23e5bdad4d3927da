package tpm

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/google/go-tpm/tpm2"

	"github.com/scepkit/scepkit/backend"
)

// describe says where a key is and how it is protected.
func (t *TPM) describe(ctx context.Context, n Name, m *material) ([]backend.Attribute, error) {
	type facts struct {
		properties map[tpm2.TPMPT]uint32
		storage    []byte
	}
	f, err := run(ctx, t, t.timeout, func(o *op) (facts, error) {
		s, err := o.useStorage(m.storage, m.pin)
		if err != nil {
			return facts{}, err
		}
		properties, err := o.properties()
		return facts{properties, s.name}, err
	})
	if err != nil {
		return nil, err
	}
	where := backend.Attribute{Name: "file", Value: n.File}
	if n.File == "" {
		where = backend.Attribute{Name: "handle", Value: fmt.Sprintf("%#x", n.Handle)}
	}
	auth := "authorization value"
	if len(m.auth) == 0 {
		auth = "no authorization value"
	}
	if !m.area.ObjectAttributes.NoDA {
		auth += ", subject to lockout"
	}
	return []backend.Attribute{
		{Name: "device", Value: t.name},
		{Name: "manufacturer", Value: manufacturer(f.properties)},
		{Name: "firmware", Value: firmware(f.properties)},
		where,
		{Name: "key", Value: backend.Describe(m.key)},
		{Name: "protection", Value: m.attributes() + ", " + auth},
		{Name: "parent", Value: fmt.Sprintf("%#x", uint32(m.storage.handle))},
		{Name: "parent name", Value: fmt.Sprintf("%x", f.storage)},
	}, nil
}

// properties asks the TPM what it is.
func (o *op) properties() (map[tpm2.TPMPT]uint32, error) {
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTManufacturer), PropertyCount: 8}.Execute(o)
	if err != nil {
		return nil, err
	}
	list, err := rsp.CapabilityData.Data.TPMProperties()
	if err != nil {
		return nil, err
	}
	out := map[tpm2.TPMPT]uint32{}
	for _, p := range list.TPMProperty {
		out[p.Property] = p.Value
	}
	return out, nil
}

func manufacturer(p map[tpm2.TPMPT]uint32) string {
	maker := text(p[tpm2.TPMPTManufacturer])
	var model string
	for _, part := range []tpm2.TPMPT{tpm2.TPMPTVendorString1, tpm2.TPMPTVendorString2, tpm2.TPMPTVendorString3, tpm2.TPMPTVendorString4} {
		model += text(p[part])
	}
	return strings.TrimSpace(maker + " " + model)
}

// text returns four characters.
func text(v uint32) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, string(binary.BigEndian.AppendUint32(nil, v)))
}

func firmware(p map[tpm2.TPMPT]uint32) string {
	v1, v2 := p[tpm2.TPMPTFirmwareVersion1], p[tpm2.TPMPTFirmwareVersion2]
	return fmt.Sprintf("%d.%d.%d.%d", v1>>16, v1&0xffff, v2>>16, v2&0xffff)
}
