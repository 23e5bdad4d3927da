//go:build cgo

package hsmtest_test

import (
	"testing"
	"time"

	"github.com/scepkit/scepkit/backend/pkcs11"
	"github.com/scepkit/scepkit/backend/tpm"
	"github.com/scepkit/scepkit/hsmtest"
	"github.com/scepkit/scepkit/scep"
)

// What holds the keys is away for three seconds, with the CA's key only, so that devices are told
// to wait, and with both, so that they are told to come back.
func TestAway(t *testing.T) {
	for name, device := range map[string]func(t *testing.T) (s, both *site, away, back func()){
		"p11-kit remote": func(t *testing.T) (*site, *site, func(), func()) {
			r := hsmtest.Remote(t, hsmtest.SoftHSM(t))
			d := quiet(&pkcs11.Driver{Timeout: 5 * time.Second})
			ca, ra := newKey(t, r.URI("ca"), d), newKey(t, r.URI("ra"), d)
			return newSite(t, ca, softwareKey(6), scep.Limits{}), newSite(t, ca, ra, scep.Limits{}), r.Kill, r.Start
		},
		"swtpm": func(t *testing.T) (*site, *site, func(), func()) {
			chip := hsmtest.TPM(t)
			d := &tpm.Driver{Dial: dial(chip), Timeout: 5 * time.Second}
			dir := t.TempDir()
			ca, ra := newKey(t, "tpm:"+dir+"/ca.tpm", d), newKey(t, "tpm:"+dir+"/ra.tpm", d)
			return newSite(t, ca, softwareKey(6), scep.Limits{}), newSite(t, ca, ra, scep.Limits{}), chip.Kill, chip.Start
		},
		"SoftHSM": func(t *testing.T) (*site, *site, func(), func()) {
			j := hsmtest.Fault(t, hsmtest.SoftHSM(t))
			d := quiet(&pkcs11.Driver{})
			ca, ra := newKey(t, j.URI("ca"), d), newKey(t, j.URI("ra"), d)
			return newSite(t, ca, softwareKey(6), scep.Limits{}), newSite(t, ca, ra, scep.Limits{}),
				func() { j.Hide(t); j.Drop() }, func() { j.Restore(t) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			ca, both, away, back := device(t)
			t.Run("CA", func(t *testing.T) { ca.t = t; outage(t, ca, true, away, back) })
			t.Run("CA and RA", func(t *testing.T) { both.t = t; outage(t, both, false, away, back) })
		})
	}
}
