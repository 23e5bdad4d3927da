package cms

import (
	"bytes"
	"testing"
)

func TestCRLOnly(t *testing.T) {
	for _, size := range []int{0, 100, 70_000, 20 << 20} {
		content := append(appendHeader(nil, 0x04, size), make([]byte, size)...)
		crl := append(appendHeader(nil, 0x30, len(content)), content...)
		der, err := CRLOnly(crl)
		if err != nil {
			t.Fatal(err)
		}
		certs, crls, err := ParseCertsOnly(der)
		if err != nil || len(certs) != 0 || len(crls) != 1 || !bytes.Equal(crls[0], crl) {
			t.Errorf("%d bytes: %d certificates, %d CRLs, %v", size, len(certs), len(crls), err)
		}
	}
}
