package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// writeCertificates makes an authority, and a certificate of it for each name:
// the host that others dial for a node, and anything for a client. Nobody
// keeps the authority's key, so there will never be another certificate of it.
func writeCertificates(dir string, names []string, out io.Writer) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	authority := &x509.Certificate{
		Subject: pkix.Name{CommonName: "pipeline"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	signer, err := issue(filepath.Join(dir, "ca.pem"), "", authority, authority, nil)
	if err != nil {
		return err
	}
	for _, name := range names {
		certificate := &x509.Certificate{
			Subject:  pkix.Name{CommonName: name},
			KeyUsage: x509.KeyUsageDigitalSignature,
			// Each process proves who it is, whether it dials or is dialled.
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
		if ip := net.ParseIP(name); ip != nil {
			certificate.IPAddresses = []net.IP{ip}
		} else {
			certificate.DNSNames = []string{name}
		}
		file := filepath.Join(dir, filepath.Base(name))
		if _, err := issue(file+".pem", file+"-key.pem", certificate, authority, signer); err != nil {
			return err
		}
		fmt.Fprintf(out, "-tls-ca %s -tls-cert %s -tls-key %s\n", filepath.Join(dir, "ca.pem"), file+".pem", file+"-key.pem")
	}
	return nil
}

// issue writes a certificate that is valid for a year, and, if it has a file,
// its key. Without a signer it is signed by itself.
func issue(file, keyFile string, certificate, authority *x509.Certificate, signer *ecdsa.PrivateKey) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if signer == nil {
		signer = key
	}
	certificate.SerialNumber = big.NewInt(time.Now().UnixNano())
	certificate.NotBefore = time.Now().Add(-time.Hour) // clocks differ
	certificate.NotAfter = certificate.NotBefore.AddDate(1, 0, 0)
	der, err := x509.CreateCertificate(rand.Reader, certificate, authority, &key.PublicKey, signer)
	if err != nil {
		return nil, err
	}
	if err := writePEM(file, "CERTIFICATE", der); err != nil || keyFile == "" {
		return key, err
	}
	der, err = x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, writePEM(keyFile, "PRIVATE KEY", der)
}

func writePEM(file, kind string, der []byte) error {
	return os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
